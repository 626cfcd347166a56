"""Transformers' Trainer for a model that its processes may share, with checkpoints that any number of them reads."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from moe_codegen.training.parallel.checkpoint import (
    has_sharded_weights,
    load_optimizer,
    load_weights,
    save_state,
)
from moe_codegen.training.parallel.mesh import ProcessLayout
from moe_codegen.training.parallel.shard import Sharded, by_mesh, clip_gradients, shard_model


class ShardedTrainer(Trainer):
    """A Trainer whose processes share the model as `layout` says; with none sharing it, the DDP of accelerate.

    accelerate's own FSDP2 is not used: it finds an optimiser's parameters again by their address, which shards without
    rows have in common, and knows one mesh, where experts need another.

    Args:
        model: whole, on every process.
        args: its processes are those of `layout`.
        layout: who holds what.
    """

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, *, layout: ProcessLayout, **kwargs: Any
    ) -> None:
        self.layout = layout
        if layout.is_sharded:
            shard_model(model, layout, args.device.type)
        super().__init__(model, args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Trainer's optimiser, no group of it across two meshes, which fused kernels cannot take."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.layout.is_sharded:
            optimizer.param_groups = [
                {**group, "params": parameters}
                for group in optimizer.param_groups
                for parameters in by_mesh(group["params"]).values()
            ]
        return optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if not self.layout.is_sharded or not training or isinstance(model, Sharded):
            return super()._wrap_model(model, training, dataloader)
        # Autocast alone; in DDP accelerate could not wrap it.
        return Sharded(self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True))

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        if not self.layout.is_sharded:
            return super()._clip_grad_norm(model)
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.layout.is_sharded and grad_norm is None:
            grad_norm = clip_gradients(model.parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm)

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights; of a sharded model only what is beside them, for `state` holds them."""
        if not self.layout.is_sharded:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            self.model.config.save_pretrained(folder)
            self.model.generation_config.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_state(Path(output_dir), self.model, self._plain_optimizer, with_weights=self.layout.is_sharded)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if self.layout.is_sharded or has_sharded_weights(checkpoint):
            load_weights(checkpoint, self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.model, self._plain_optimizer)
            self._load_scheduler(Path(checkpoint, SCHEDULER_NAME))

    def _load_scheduler(self, file: Path) -> None:
        scheduler: Any = self.lr_scheduler
        # Its lists have an entry for each group of parameters, and groups depend on who holds what.
        by_group = {name: value for name, value in scheduler.state_dict().items() if isinstance(value, list)}
        rates = [group["lr"] for group in self._plain_optimizer.param_groups]
        scheduler.load_state_dict({**torch.load(file, weights_only=True), **by_group, "_last_lr": rates})

    @property
    def _plain_optimizer(self) -> Optimizer:
        """The optimiser inside accelerate's."""
        optimizer: Any = self.optimizer
        return getattr(optimizer, "optimizer", optimizer)
