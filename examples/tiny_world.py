"""What the training examples need, made within seconds: made-up code, packed; a base; and experts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from transformers import GPTBigCodeConfig

from moe_codegen.data import PackSettings, SplitSettings, TokenizerSettings, make_tokenizer, open_source, pack, split
from moe_codegen.training import DenseSettings, ExpertSettings, train

LINES = {"python": "    {0} = self.{1}[{2}]", "rust": "    let mut {0}: u32 = {1}!({2});"}
WORDS = ["row", "node", "key", "path", "first", "last", "count", "name"]
LENGTH = 64
QUICK = dict(batch_size=8, learning_rate=5e-3, log_every=5)


@dataclass(frozen=True)
class World:
    """A base, its experts if any, packed sequences of each language and of all, and documents for validation."""

    base: str
    experts: dict[str, str]
    packed: Path
    mixed: str
    validation: str


def make_world(folder: Path, with_experts: bool = False) -> World:
    random = Random(0)
    rows = [
        {"repo": f"owner/{language}{number % 9}", "path": str(number), "language": language}
        | {"content": "\n".join(form.format(*random.choices(WORDS, k=2), random.randrange(99)) for _ in range(40))}
        for language, form in LINES.items()
        for number in range(60)
    ]
    (folder / "code").mkdir()
    (folder / "code" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split(open_source(folder / "code"), folder / "split", SplitSettings(validation=0.3))
    training = open_source(folder / "split" / "train")
    make_tokenizer(training, folder / "tokenizer", TokenizerSettings(vocabulary=400))
    settings = PackSettings(str(folder / "tokenizer"), LENGTH, fim_rate=0.0)
    pack(training, folder / "mixed", settings)
    for language in LINES:
        pack(training, folder / "packed" / language, replace(settings, weights=(f"{language}=1",)))  # it alone
    base = str(folder / "base")
    GPTBigCodeConfig(
        vocab_size=405, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, n_inner=64, bos_token_id=0, eos_token_id=0
    ).save_pretrained(folder / "config")
    new = dict(config=str(folder / "config"), tokenizer=str(folder / "tokenizer"), tokens=30 * 8 * LENGTH)
    train(DenseSettings(train=(str(folder / "mixed"),), **new, **QUICK), base)
    experts = {}
    for language in LINES if with_experts else ():
        experts[language] = str(folder / "experts" / language)
        data = (str(folder / "packed" / language),)
        train(ExpertSettings(model=base, train=data, tokens=20 * 8 * LENGTH, **QUICK), experts[language])
    return World(base, experts, folder / "packed", str(folder / "mixed"), str(folder / "split" / "validation"))
