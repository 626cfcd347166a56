"""Transformers' Trainer for packed code: what a mixture adds, and checkpoints that are whole or not there."""

import shutil
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from moe_codegen.errors import NonFiniteError, OutputError
from moe_codegen.metrics import EncodedDocument, Interval, document_losses, losses_by_language, start_token
from moe_codegen.moe import RoutingRecorder, TopKRouter
from moe_codegen.training.data import PackedSequences, batch_of
from moe_codegen.training.folder import STAGED
from moe_codegen.training.history import History, load_record
from moe_codegen.training.meter import Meter, load_figures
from moe_codegen.training.parallel import ShardedTrainer


class Passes(torch.utils.data.Sampler[int]):
    """`total` places in `data`: pass after pass, each in an order of its own that only `seed` decides.

    Trainer takes all of it for one epoch, so every optimiser step has a full batch, and processes share it as they
    share any sampler's: the batches are the same for any number of them.
    """

    def __init__(self, data: Sized, total: int, seed: int) -> None:
        self.data, self.total, self.seed = data, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.total, len(self.data)):
            order = torch.randperm(len(self.data), generator=generator)
            yield from order[: self.total - start].tolist()


class LogWithCheckpoints(TrainerCallback):
    """Writes a line at each checkpoint and at the end, so that a resumed run's lines are means over the same steps."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a line where there will be a checkpoint."""
        control.should_log |= control.should_save or state.global_step >= state.max_steps


class MoETrainer(ShardedTrainer):
    """Trains a dense model or a mixture on `PackedSequences`.

    To `ShardedTrainer` it adds: a learning rate of the router's own; the router losses, the experts' load and the
    first bad step, measured without waiting for the device; validation loss by language on whole documents;
    checkpoints that are written aside and renamed, so that the last one is always good.

    Attributes:
        history: set in the main process, it gets every line.

    Args:
        model: with what is not trained frozen.
        args: see `arguments.py`; `output_dir` is the folder of the checkpoints.
        data: what to train on.
        documents: what to measure the loss on; none measures nothing.
        tokenizer: of the model.
        router_learning_rate: of the routers; None for that of the rest.
        keep_checkpoints: how many stay.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        data: PackedSequences,
        documents: list[EncodedDocument],
        tokenizer: Any,
        *,
        router_learning_rate: float | None = None,
        keep_checkpoints: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            args,
            data_collator=batch_of,
            train_dataset=data,
            eval_dataset=documents or None,
            processing_class=tokenizer,
            **kwargs,
        )
        self.add_callback(LogWithCheckpoints)
        self.remove_callback(PrinterCallback)
        self.documents, self.start_id = documents, start_token(tokenizer)
        self.router_learning_rate = router_learning_rate
        self.keep_checkpoints = keep_checkpoints
        self.history: History | None = None
        self._validated_at, self._validated = -1, dict[str, Interval]()
        self._since = 0.0  # when the last line was written; what is no training is taken out
        self.meter = Meter(self.model, data.languages, self.args.device)
        self._recorder = RoutingRecorder(self.model)
        self._expert_of_language: torch.Tensor | None = None
        if getattr(self.model.config, "language_routing", "none") != "none":
            self._expert_of_language = torch.tensor(self.model.config.language_ids(data.languages))
        self._run_dir = Path(args.output_dir)

    # What is trained, and on what

    def _get_train_sampler(self, train_dataset: Any = None) -> Passes:
        data = self.train_dataset if train_dataset is None else train_dataset
        sequences = self.args.max_steps * self.get_total_train_batch_size(self.args)
        return Passes(data, sequences, self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimiser, with the routers in groups of their own where they have a learning rate of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.router_learning_rate is not None:
            routers = {
                parameter
                for module in (model or self.model).modules()
                if isinstance(module, TopKRouter)
                for parameter in module.parameters()
            }
            for group in list(optimizer.param_groups):
                mine = [parameter for parameter in group["params"] if parameter in routers]
                group["params"] = [parameter for parameter in group["params"] if parameter not in routers]
                if mine:
                    optimizer.add_param_group({**group, "params": mine, "lr": self.router_learning_rate})
        if is_new:  # torch cannot put the state of a group of nothing together again
            optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # What is measured

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's loss on packed sequences; what there is to measure goes into `meter`."""
        language_ids = inputs["language_ids"]
        # With a cache, documents of one sequence would see one another.
        inputs = {**{name: value for name, value in inputs.items() if name != "language_ids"}, "use_cache": False}
        if self._expert_of_language is not None:
            experts = self._expert_of_language.to(language_ids.device)[language_ids.clamp(min=0)]
            inputs["language_ids"] = experts.where(language_ids >= 0, -1)
        with self._recorder:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.meter.add(self.state.global_step + 1, outputs, self._recorder.ids_LTK, language_ids)
        return (loss, outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's `train`."""
        self._since = time.perf_counter()
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with what the meter says of the steps since the last one."""
        line: dict[str, Any] = {}
        if "loss" in logs:
            reading = self.meter.read(self._gather)
            self._refuse(reading.bad_step)
            seconds = time.perf_counter() - self._since
            self._since = time.perf_counter()
            tokens = self.get_total_train_batch_size(self.args) * self.train_dataset.sequence_length
            logs = {
                **logs,
                **reading.losses,
                "tokens": self.state.global_step * tokens,
                "tokens_per_second": reading.steps * tokens / seconds,
            }
            line["seconds"] = seconds
            if reading.load is not None:
                logs |= load_figures(reading.load)
                line["load"] = load_record(reading.load)
        super().log(logs, start_time)
        # Trainer's last word is of this process's steps alone, and counts other FLOPs than the summary.
        if self.history is not None and "train_runtime" not in logs:
            self.history.append({"step": self.state.global_step, **logs, **line})

    def validate(self) -> dict[str, Interval]:
        """Mean loss of each language and of "all" with its interval over repositories, in nats per token.

        Measured once a step: a run that evaluates at its last step has its final losses already.
        """
        if not self.documents:
            return {}
        if self._validated_at != self.state.global_step:
            window = self.train_dataset.sequence_length
            with self._not_training():
                losses = document_losses(self.model, self.documents, self.start_id, window=window)
            self._validated_at, self._validated = self.state.global_step, losses_by_language(losses)
        return self._validated

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """`validate` as Trainer's metrics: `eval_loss_python`, ..., `eval_loss_all`."""
        metrics = {f"{metric_key_prefix}_loss_{name}": interval.value for name, interval in self.validate().items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def _not_training(self) -> Iterator[None]:
        """A context whose seconds do not count as training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(tensor[None])

    # What is kept

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._run_dir / STAGED)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and give it its name when it is whole; none of a model that is not finite."""
        self._refuse(self.meter.bad_step(self._gather))
        if not self._has_finite_weights():
            self._refuse(self.state.global_step, "some weight after")
        name = f"checkpoint-{self.state.global_step}"
        try:
            with self._not_training():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (self._run_dir / STAGED / name).replace(self._run_dir / name)
                self._drop_old()
        # Of a full disk Python, safetensors, tokenizers and torch each have an error of their own.
        except Exception as error:
            raise OutputError(
                f"{self._run_dir / name} cannot be written: {error}. {self._last_good()}. "
                "Free some space and run the same command again; it goes on from there"
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(self._run_dir / STAGED, ignore_errors=True)

    def _drop_old(self) -> None:
        kept = sorted(self._run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for path in kept[: -self.keep_checkpoints]:
            shutil.rmtree(path)

    def _has_finite_weights(self) -> bool:
        # With sharded weights, each process looks at its own.
        local = [getattr(weight, "_local_tensor", weight) for weight in self.model.parameters() if weight.requires_grad]
        mine = torch.stack([weight.detach().isfinite().all() for weight in local]).all()
        return bool(self._gather(mine).all())

    def _refuse(self, bad_step: int | None, what: str = "the loss of") -> None:
        if bad_step is not None:
            raise NonFiniteError(
                f"{what} step {bad_step} is not finite. {self._last_good()}. Lower learning_rate or max_grad_norm, "
                "lengthen warmup, or leave fp16 for bf16; then give another folder or delete this one"
            )

    def _last_good(self) -> str:
        last = get_last_checkpoint(self._run_dir) if self._run_dir.exists() else None
        return f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
