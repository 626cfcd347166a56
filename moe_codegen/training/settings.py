"""What a run file says: one settings class for each of `train dense`, `train expert` and `train mix`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moe_codegen.errors import ConfigError
from moe_codegen.settings import check_between, check_least, setting

# What may change when a run goes on: the result does not depend on who holds what.
FREE_TO_CHANGE = ("fsdp_size", "ep_size")


@dataclass(frozen=True)
class TrainSettings:
    """What every run has."""

    model: str = setting("", "checkpoint to start from: a folder or hub id", is_path=True)
    train: tuple[str, ...] = setting((), "folders of `data pack`; several are mixed", is_path=True)
    validation: str = setting("", "documents to measure the loss on: `validation` of `data split`", is_path=True)
    validation_tokens: int = setting(50_000, "about how many tokens of validation for each language, in whole files")
    tokens: int | None = setting(
        None, "tokens to train on, padding included, in passes over the same sequences; not given: one pass"
    )
    batch_size: int = setting(32, "sequences an optimiser step, over all processes")
    micro_batch_size: int = setting(8, "sequences a process takes at once; divides batch_size / processes")
    learning_rate: float = setting(3e-4, "at the peak")
    warmup: float = setting(0.02, "share of the steps in which the learning rate rises (again) from zero")
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = setting(
        "cosine", "after the warm-up: to zero as a cosine or linearly; constant; or constant, then linearly to zero"
    )
    decay: float = setting(0.2, "share of the steps in which warmup_stable_decay falls to zero, at the end")
    weight_decay: float = setting(0.1, "AdamW's, on matrices")
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0 leaves them")
    precision: Literal["float32", "bf16", "fp16"] = setting(
        "float32", "of the computation; weights stay float32; fp16 needs a GPU"
    )
    gradient_checkpointing: bool = setting(False, "keep only each layer's input for backward and recompute the rest")
    log_every: int = setting(10, "optimiser steps between two lines of the history")
    evaluate_every: int | None = setting(None, "steps between two validations; otherwise only the end is measured")
    checkpoint_every: int | None = setting(None, "steps between two checkpoints; otherwise ten in all")
    keep_checkpoints: int = setting(2, "how many checkpoints stay")
    fsdp_size: int = setting(1, "processes that share one copy of the model (FSDP2); 1 is DDP, -1 all of them")
    ep_size: int = setting(1, "processes that share the experts of each layer (expert parallelism)")
    seed: int = setting(0, "of the order of the data, dropout and new weights")
    trainer: Mapping[str, Any] = setting({}, "any other field of transformers' TrainingArguments")

    def check(self) -> None:
        """Raise ConfigError for values that cannot hold whatever the model and the data are."""
        if not self.train:
            raise ConfigError("train names no data; give folders made by `moe-codegen data pack`")
        check_least(self, 1, "batch_size", "micro_batch_size", "log_every", "keep_checkpoints", "validation_tokens")
        check_least(self, 1, "tokens", "evaluate_every", "checkpoint_every")
        if self.evaluate_every and not self.validation:
            raise ConfigError("evaluate_every needs `validation`, the documents to measure the loss on")
        check_between(self, 0, math.inf, "learning_rate", open_ended=True)
        check_between(self, 0, math.inf, "weight_decay", "max_grad_norm")
        check_between(self, 0, 2**32 - 1, "seed")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup={self.warmup} is a share of the steps and should lie between 0 and 1")
        if self.schedule == "warmup_stable_decay" and not 0 < self.decay <= 1 - self.warmup:
            raise ConfigError(f"decay={self.decay} is a share of the steps: above 0, and with warmup at most 1")
        self._check_sharing()
        if self.trainer.get("label_smoothing_factor"):
            raise ConfigError(
                "label_smoothing_factor makes Trainer compute the loss itself, from the logits: the router losses "
                "would be left out without a word. Leave it out"
            )

    def _check_sharing(self) -> None:
        for name in ("fsdp", "fsdp_config", "deepspeed", "parallelism_config"):
            if self.trainer.get(name):
                raise ConfigError(f"trainer.{name}: processes share a model as fsdp_size and ep_size say; set those")
        if self.fsdp_size == self.ep_size == 1:
            return
        for name, value in (("precision", "fp16"), ("parts", "lora")):
            if getattr(self, name, None) == value:
                raise ConfigError(
                    f"{name}={value!r} works only where every process holds the whole model: set fsdp_size=1 and "
                    f"ep_size=1, or another {name}"
                )


@dataclass(frozen=True)
class DenseModelSettings(TrainSettings):
    """What runs of a dense model have: a checkpoint or a new model, and which part of it is trained."""

    config: str = setting("", "config.json of a model to train from scratch, instead of `model`", is_path=True)
    tokenizer: str = setting("", "folder of the tokenizer of a model from scratch", is_path=True)
    parts: Literal["all", "ffn", "lora"] = setting("all", "what is trained: everything, the FFNs, or LoRA (merged)")
    lora_rank: int = setting(16, "rank of the LoRA matrices")
    lora_alpha: float = setting(32.0, "LoRA's scale: the update is multiplied by alpha / rank")

    def check(self) -> None:
        """As `TrainSettings.check`."""
        super().check()
        if bool(self.model) == bool(self.config):
            raise ConfigError("give either `model`, a checkpoint to start from, or `config`, to train from scratch")
        if self.config and not self.tokenizer:
            raise ConfigError("a model from scratch needs `tokenizer`, the folder of the one the data was packed with")
        if self.config and self.parts != "all":
            raise ConfigError(f"parts={self.parts!r} would leave a model from scratch mostly random; use 'all'")
        check_least(self, 1, "lora_rank")


@dataclass(frozen=True)
class DenseSettings(DenseModelSettings):
    """Train a dense model: a base, or the universal rival of a mixture at equal training FLOPs."""

    equal_flops: tuple[str, ...] = setting((), "finished runs whose training FLOPs in all are spent", is_path=True)

    def check(self) -> None:
        """As `TrainSettings.check`."""
        super().check()
        if self.equal_flops and self.tokens is not None:
            raise ConfigError("`tokens` and `equal_flops` both say how long to train; give one of them")


@dataclass(frozen=True)
class ExpertSettings(DenseModelSettings):
    """Continue a dense base on one language."""


@dataclass(frozen=True)
class MixSettings(TrainSettings):
    """Train a mixture: its router alone, with what its experts share, or everything."""

    parts: Literal["router", "shared", "all"] = setting("all", "what is trained: the router, all but experts, or all")
    router_learning_rate: float | None = setting(None, "the router's own peak; otherwise `learning_rate`")
    router_aux_loss_coef: float | None = setting(None, "of the load-balancing loss; otherwise the checkpoint's")
    router_z_loss_coef: float | None = setting(None, "of the router z-loss; otherwise the checkpoint's")
    router_logit_scale: float | None = setting(
        None, "standard deviation to which the router's logits are normalised (arXiv 2406.06563); 0 leaves them"
    )
    language_routing: Literal["none", "prior", "oracle"] | None = setting(
        None, "what the router makes of a file's language: nothing, a learned prior, or its expert alone"
    )
    recompute_experts: bool = setting(False, "keep only the experts' input for backward and recompute the rest")

    def check(self) -> None:
        """As `TrainSettings.check`."""
        super().check()
        if not self.model:
            raise ConfigError("`model` names no mixture; make one with `moe-codegen upcycle`")
        check_between(self, 0, math.inf, "router_learning_rate", open_ended=True)
        check_between(self, 0, math.inf, "router_aux_loss_coef", "router_z_loss_coef", "router_logit_scale")
