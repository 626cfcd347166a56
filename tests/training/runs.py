"""Small things to train: made-up source code in three languages, packed and split, and tiny models for it."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import GPTBigCodeConfig, PreTrainedModel

from moe_codegen.data import PackSettings, TokenizerSettings, make_tokenizer, open_source, pack
from moe_codegen.training import DenseSettings, train
from tests import tiny
from tests.data.inputs import WORDS, write

LANGUAGES = ("java", "python", "rust")
LENGTH = 64
VOCABULARY = 400


@dataclass(frozen=True)
class Corpus:
    """Folders: the tokenizer, packed sequences of each language and of all, and documents for validation."""

    tokenizer: str
    packed: dict[str, str]
    mixed: str
    validation: str
    config: str


def source_text(language: str, seed: int) -> str:
    """A file whose every line is of a form that only its language has."""
    generator = random.Random(f"{language} {seed}")
    form = {
        "java": "    private int {0} = this.{1}({2});",
        "python": "    {0} = self.{1}[{2}]",
        "rust": "    let mut {0}: u32 = {1}!({2});",
    }[language]
    return "\n".join(form.format(*generator.choices(WORDS, k=2), generator.randrange(99)) for _ in range(20)) + "\n"


def make_corpus(folder: Path) -> Corpus:
    """Write everything a run reads to `folder`."""
    rows = {
        side: [
            {"repo": f"{language}/{seed % 4}", "path": f"{seed}.x", "language": language}
            | {"content": source_text(language, start + seed)}
            for language in LANGUAGES
            for seed in range(count)
        ]
        for side, start, count in (("train", 0, 40), ("validation", 1000, 8))
    }
    for side, some in rows.items():
        write(folder / side, some)
    source = open_source(folder / "train")
    make_tokenizer(source, folder / "tokenizer", TokenizerSettings(vocabulary=VOCABULARY))
    settings = PackSettings(str(folder / "tokenizer"), LENGTH, fim_rate=0.0)
    pack(source, folder / "mixed", settings)
    for language in LANGUAGES:
        mine = write(folder / "by-language" / language, [row for row in rows["train"] if row["language"] == language])
        pack(open_source(mine), folder / "packed" / language, settings)
    tokens = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    config = GPTBigCodeConfig(
        vocab_size=len(tokens["model"]["vocab"]) + 5,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_inner=64,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    config.save_pretrained(folder / "config")
    return Corpus(
        str(folder / "tokenizer"),
        {language: str(folder / "packed" / language) for language in LANGUAGES},
        str(folder / "mixed"),
        str(folder / "validation"),
        str(folder / "config"),
    )


def from_scratch(corpus: Corpus, **fields) -> DenseSettings:
    """Settings that train a base on every language."""
    return DenseSettings(
        **{
            **dict(
                config=corpus.config, tokenizer=corpus.tokenizer, train=(corpus.mixed,), validation=corpus.validation
            ),
            **dict(batch_size=8, micro_batch_size=4, learning_rate=1e-2, log_every=1, validation_tokens=2000),
            **fields,
        }
    )


def save_random(corpus: Corpus, folder: Path, layout: str) -> PreTrainedModel:
    """Write a base of random weights in `layout` with the tokenizer of the corpus; returns the model."""
    vocabulary = json.loads(Path(corpus.config, "config.json").read_text())["vocab_size"]
    model = tiny.save_dense(folder, layout, vocab_size=vocabulary)
    shutil.copytree(corpus.tokenizer, folder, dirs_exist_ok=True)
    return model


def make_base(corpus: Corpus, folder: Path, **fields) -> str:
    """A base of a few steps."""
    train(from_scratch(corpus, **{"tokens": 8 * LENGTH * 10, **fields}), folder)
    return str(folder)
