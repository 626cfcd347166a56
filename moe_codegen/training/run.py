"""`train`: from settings to a folder that holds the model and how it came to be."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from moe_codegen.errors import ConfigError
from moe_codegen.metrics import load_summary
from moe_codegen.modeling.flops import training_flops
from moe_codegen.training.arguments import training_arguments
from moe_codegen.training.data import PackedSequences, validation_documents
from moe_codegen.training.figures import draw
from moe_codegen.training.folder import RunFolder
from moe_codegen.training.history import History, Line, late_load, read_history
from moe_codegen.training.inputs import flops_spent, identify
from moe_codegen.training.models import load_for_training, merged, read_config
from moe_codegen.training.parallel import ProcessLayout, whole_weights
from moe_codegen.training.progress import RoutingWatch
from moe_codegen.training.settings import DenseSettings, ExpertSettings, MixSettings, TrainSettings
from moe_codegen.training.trainer import MoETrainer

VERBS: dict[str, type[TrainSettings]] = {"dense": DenseSettings, "expert": ExpertSettings, "mix": MixSettings}


def train(
    settings: TrainSettings,
    out: str | Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Train the model that `settings` describe and write it to `out`, with its history and a summary.

    What is trained depends on the class of `settings`: `DenseSettings`, `ExpertSettings` or `MixSettings`. The same
    call again goes on from the last checkpoint of a run that was stopped, to the losses it would have had; where the
    run is finished it returns at once.

    Args:
        settings: as a run file says them.
        out: new or empty folder, or that of a run that was stopped.
        callbacks: of transformers' Trainer, such as `TrainingBar`.
        warn: called with what the user should know while it goes on, such as that routing collapses.

    Returns:
        The summary: settings, steps, tokens, `training_flops`, losses by language with their intervals, seconds, and
        of a mixture `routing`, how even the load was in the last quarter of the run and how far it followed language.

    Raises:
        ConfigError: settings that cannot hold, alone or with the model and the data.
        CheckpointError: no model is there, or it cannot be used.
        SourceError, TokenizerError: data that is missing, empty, or packed for another model.
        OutputError: `out` is in the way or cannot be written; a full disk names the last good checkpoint.
        ResumeError: `out` holds a run of other settings, or of another model or other data.
        NonFiniteError: the loss is not finite; the last checkpoint still is.
    """
    settings.check()
    verb = next(name for name, its_class in VERBS.items() if type(settings) is its_class)
    folder = RunFolder(out, verb, settings, identify(settings))
    if (summary := folder.summary) is not None:
        return summary
    layout = layout_of(settings)
    model, tokenizer = load_for_training(settings)
    data = PackedSequences(settings.train, tokenizer)
    check_fit(settings, data, model.config)
    flops = training_flops(model, data.sequence_length)
    steps = steps_of(settings, data, flops)
    trainer = MoETrainer(
        model,
        training_arguments(settings, folder.checkpoints, steps, model),
        data,
        validation_documents(settings.validation, tokenizer, settings.validation_tokens) if settings.validation else [],
        tokenizer,
        router_learning_rate=getattr(settings, "router_learning_rate", None),
        keep_checkpoints=settings.keep_checkpoints,
        layout=layout,
        callbacks=[*callbacks, RoutingWatch(warn)],
    )
    last = folder.last_checkpoint
    if trainer.is_world_process_zero():
        folder.begin()
        trainer.history = History(folder.history, int(last.rpartition("-")[2]) if last else 0)
    trainer.train(resume_from_checkpoint=last)
    tokens = steps * settings.batch_size * data.sequence_length
    made = {
        "steps": steps,
        "tokens": tokens,
        "passes": steps * settings.batch_size / len(data),
        "data_tokens_by_language": data.tokens_by_language,
        "training_flops_per_token": flops,
        "training_flops": flops * tokens,
        "validation": {name: asdict(interval) for name, interval in trainer.validate().items()},
    }
    weights = whole_weights(trainer.model) if layout.is_sharded else None
    if trainer.is_world_process_zero():
        names = getattr(model.config, "expert_names", None)
        with folder.ending():
            made |= _told_by(read_history(folder.history), folder.path / "figures", names)
            folder.finish(lambda path: _save(merged(trainer.model), tokenizer, path, weights), made)
    return folder.summary or made


def _told_by(lines: list[Line], figures: Path, expert_names: list[str] | None) -> dict[str, Any]:
    """What the history has for the summary; draws the figures."""
    told = {"seconds": sum(line.get("seconds", 0) for line in lines), "figures": draw(lines, figures, expert_names)}
    load = late_load(lines)
    return told if load is None else {**told, "routing": load_summary(load)}


def layout_of(settings: TrainSettings) -> ProcessLayout:
    """How the processes that torchrun started share the model; ConfigError where they cannot."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    layout = ProcessLayout(processes, processes if settings.fsdp_size == -1 else settings.fsdp_size, settings.ep_size)
    layout.check(read_config(settings))
    return layout


def check_fit(settings: TrainSettings, data: PackedSequences, config: Any) -> None:
    """Raise ConfigError unless the data fits the model and fills a batch."""
    held = list(data.tokens_by_language)
    positions = getattr(config, "max_position_embeddings", data.sequence_length)
    if data.sequence_length > positions:
        raise ConfigError(
            f"the data is packed in sequences of {data.sequence_length} tokens and the model has {positions} "
            f"positions; pack with sequence_length={positions} or less"
        )
    if len(data) < settings.batch_size:
        raise ConfigError(
            f"{len(data)} sequences of {data.sequence_length} tokens do not fill one batch of "
            f"batch_size={settings.batch_size}; lower it, or pack more data"
        )
    if getattr(config, "language_routing", "none") != "none" and max(config.language_ids(held)) < 0:
        raise ConfigError(
            f"the router is told languages by the names of the experts, {', '.join(config.expert_names)}, and the data "
            f"holds {', '.join(held)}; name the experts as the data names its languages"
        )
    if isinstance(settings, ExpertSettings) and len(held) > 1:
        raise ConfigError(
            f"an expert learns one language and the data holds {', '.join(held)}; give the folder of one, packed with "
            f"`--weights {held[0]}=1`, or train on all with `moe-codegen train dense`"
        )


def steps_of(settings: TrainSettings, data: PackedSequences, flops_per_token: float) -> int:
    """How many optimiser steps: as many as `tokens` ask for, as equal FLOPs allow, or as one pass over the data has."""
    tokens_a_step = settings.batch_size * data.sequence_length
    tokens: float | None = settings.tokens
    if isinstance(settings, DenseSettings) and settings.equal_flops:
        tokens = flops_spent(settings.equal_flops) / flops_per_token
    return max(1, round(tokens / tokens_a_step)) if tokens is not None else len(data) // settings.batch_size


def _save(model: Any, tokenizer: Any, path: Path, weights: dict[str, Any] | None) -> None:
    model.save_pretrained(path, state_dict=weights)
    tokenizer.save_pretrained(path)
