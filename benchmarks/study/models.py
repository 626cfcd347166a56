"""The models of the study, each made once into a folder of its own: the base, the experts, the mixtures, the rivals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GPTBigCodeConfig

from benchmarks.study.data import StudyData
from benchmarks.study.protocol import BASE, CONTINUED, LANGUAGES, MIXTURES, RIVALS, STABLE, Rival, Scale, budget
from moe_codegen import upcycle
from moe_codegen.training import DenseSettings, ExpertSettings, MixSettings, train
from moe_codegen.training.folder import read_summary
from moe_codegen.training.settings import TrainSettings

Say = Callable[[str], None]


class StudyModels:
    """Makes what is not there yet below `folder`; a run that was stopped goes on from its last checkpoint.

    Attributes:
        summaries: name of a trained model -> the summary of its run.
    """

    def __init__(self, folder: Path, data: StudyData, scale: Scale, seed: int, say: Say = print) -> None:
        self.folder, self.data, self.scale, self.seed, self._say = folder, data, scale, seed, say
        self.summaries: dict[str, dict[str, Any]] = {}
        self.tokenizer = AutoTokenizer.from_pretrained(data.tokenizer)

    def path(self, name: str) -> Path:
        """Where the model `name` is: "base", a language's expert, a mixture of `MIXTURES`, a rival."""
        return self.folder / name

    def make(self) -> None:
        """Everything, in the order in which one thing needs another."""
        for name in (BASE, *LANGUAGES):
            self.train(name)
        for name in MIXTURES:
            self.join(name)
        for name in RIVALS:
            self.train(name)

    def train(self, name: str) -> None:
        """Train the base, a language's expert or a rival."""
        if read_summary(self.path(name)) is None:
            self._say(f"training {name}")
        self.summaries[name] = run = train(self._settings(name), self.path(name))
        losses = "  ".join(f"{language} {run['validation'][language]['value']:.3f}" for language in LANGUAGES)
        self._say(f"{name}: {run['tokens'] / 1e6:.2f}M tokens, {run['seconds']:.0f} s; {losses}")

    def join(self, name: str) -> None:
        """Make the untrained mixture `name`."""
        mixture, out = MIXTURES[name], self.path(name)
        if out.exists():
            return
        options = dict(mixture.options)
        if mixture.of_experts:
            options["experts"] = {expert: self.path(expert) for expert in mixture.expert_names}
        if "router" in options:
            options["router_data"] = self.data.router_texts(mixture.expert_names)
        upcycle(self.path(BASE), out, seed=self.seed, **options)

    def spent_on_experts(self) -> tuple[float, float]:
        """Tokens and training FLOPs of the language experts together."""
        runs = [self.summaries[language] for language in LANGUAGES]
        return sum(run["tokens"] for run in runs), sum(run["training_flops"] for run in runs)

    def _settings(self, name: str) -> TrainSettings:
        scale, base = self.scale, str(self.path(BASE))
        if name == BASE:
            config, tokenizer = str(self._config()), str(self.data.tokenizer)
            common = {**self._common(scale.base_tokens), "learning_rate": scale.learning_rate, "seed": self.seed}
            return DenseSettings(config=config, tokenizer=tokenizer, **common)
        if name in LANGUAGES:
            common = {**self._common(scale.expert_tokens), "train": (str(self.data.packed[name]),)}
            return ExpertSettings(model=base, **{**common, "evaluate_every": None})
        rival = RIVALS[name]
        common = self._common(budget(rival, scale))
        if rival.is_mixture:
            return MixSettings(model=str(self.path(rival.start)), **common)
        return DenseSettings(model=base, equal_flops=self._whose_flops(rival), **common)

    def _whose_flops(self, rival: Rival) -> tuple[str, ...]:
        if rival.equal_flops is None:
            return ()
        experts = LANGUAGES if RIVALS[rival.equal_flops].of_experts else ()
        return tuple(str(self.path(run)) for run in (*experts, rival.equal_flops))

    def _common(self, tokens: int | None) -> dict[str, Any]:
        """What all runs that continue the base have in common; they see the data in another order than it did."""
        scale = self.scale
        between = max(1, scale.steps(scale.continued_tokens) // scale.curve_points)
        return dict(
            train=tuple(str(self.data.packed[language]) for language in LANGUAGES),
            tokens=tokens,
            validation=str(self.data.test),
            validation_tokens=scale.curve_tokens,
            batch_size=scale.batch_size,
            micro_batch_size=scale.batch_size,
            learning_rate=CONTINUED * scale.learning_rate,
            schedule="warmup_stable_decay",
            decay=1 - STABLE,
            precision=scale.precision,
            evaluate_every=between,
            log_every=max(1, between // 4),
            seed=self.seed + 1,
        )

    def _config(self) -> Path:
        """The `config.json` of a small SantaCoder, whose tokenizer is the study's."""
        scale, file = self.scale, self.folder / "config" / "config.json"
        config = GPTBigCodeConfig(
            vocab_size=len(self.tokenizer),
            n_positions=scale.sequence_length,
            n_embd=scale.width,
            n_layer=scale.layers,
            n_head=scale.heads,
            n_inner=4 * scale.width,
            multi_query=True,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        return file
