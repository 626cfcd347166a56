"""A run's settings as transformers' TrainingArguments."""

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from moe_codegen.errors import ConfigError
from moe_codegen.settings import nearest
from moe_codegen.training.settings import TrainSettings

CHECKPOINTS = 10  # in a run, where nothing else is asked for
# Where transformers' own suit us less. Memory can be pinned only for an accelerator; and without one, processes that
# torchrun started know of one another only where they are told to use the CPU. Every trained parameter has a gradient
# in every pass, so DDP need not search for those that have none.
HAS_ACCELERATOR = torch.accelerator.is_available()
DEFAULTS = dict(
    adam_beta2=0.95,
    report_to=[],
    dataloader_pin_memory=HAS_ACCELERATOR,
    use_cpu=not HAS_ACCELERATOR,
    ddp_find_unused_parameters=False,
)

# Fields that would do nothing here, or break what a run promises, and what to set instead.
REPLACED = {
    "num_train_epochs": "tokens says how long a run is",
    "save_total_limit": "keep_checkpoints says how many stay",
    "save_only_model": "a checkpoint has all that a stopped run needs to go on",
    "train_sampling_strategy": "packed sequences are of one length, and drawn in an order that seed decides",
    "average_tokens_across_devices": "every token of a batch counts alike, whichever process has it",
    "resume_from_checkpoint": "the same command again goes on from the last checkpoint",
    "include_num_input_tokens_seen": "every line of the history has the tokens so far",
    "per_device_eval_batch_size": "documents are measured in batches of 4096 tokens",
    "push_to_hub": "it would upload checkpoints and never the finished model; when the run has ended, upload that with "
    "`hf upload OWNER/NAME OUT --exclude 'checkpoints/*'`",
}


def training_arguments(settings: TrainSettings, folder: Path, steps: int, model: PreTrainedModel) -> TrainingArguments:
    """The arguments of a run that trains `model` for `steps` optimiser steps; its checkpoints go to `folder`.

    Raises:
        ConfigError: `trainer` names an unknown field, one that the run file has a name of its own for, or one that
            would do nothing or needs a package that is not installed; the batch cannot be shared among the processes;
            or one process has several GPUs.
    """
    if settings.precision == "fp16" and not HAS_ACCELERATOR:
        raise ConfigError("precision='fp16' needs a GPU: on the CPU it would change nothing; use 'bf16' or 'float32'")
    ours: dict[str, Any] = dict(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        lr_scheduler_kwargs=_of_schedule(settings, steps),
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it waits for the device in every step, and hides what must be seen
        eval_strategy="steps" if settings.evaluate_every else "no",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.checkpoint_every or max(1, steps // CHECKPOINTS),
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        disable_tqdm=True,
        gradient_accumulation_steps=1,  # known once the processes are
        load_best_model_at_end=False,
    )
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # Renamed in the course of transformers 5.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    ours[checkpointing] = settings.gradient_checkpointing
    for name in settings.trainer:
        if name not in names:
            raise ConfigError(f"trainer.{name} is no field of TrainingArguments{nearest(name, names)}")
        if name in ours:
            raise ConfigError(f"trainer.{name} is decided by the run file itself; see `moe-codegen train --help`")
        if name in REPLACED:
            raise ConfigError(f"trainer.{name} has no place here: {REPLACED[name]}. Leave it out")
    try:
        arguments = TrainingArguments(**ours, **{**DEFAULTS, **settings.trainer})
        # These say what is not installed.
        for reporter in get_reporting_integration_callbacks(arguments.report_to):
            reporter()
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if arguments.use_liger_kernel:
            import_module("liger_kernel")
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"transformers refuses these settings: {error}") from error
    if arguments.n_gpu > 1:  # Trainer would take as many micro-batches at once
        raise ConfigError(
            f"one process sees {arguments.n_gpu} GPUs and can use one: start one for each with "
            f"`torchrun --nproc-per-node {arguments.n_gpu} --no-python moe-codegen train ...`, or set "
            "CUDA_VISIBLE_DEVICES=0"
        )
    arguments.gradient_accumulation_steps = _accumulation(settings, arguments.world_size)
    return arguments


def _of_schedule(settings: TrainSettings, steps: int) -> dict[str, Any]:
    if settings.schedule != "warmup_stable_decay":
        return {}
    return {"num_decay_steps": round(settings.decay * steps), "decay_type": "linear"}


def _accumulation(settings: TrainSettings, processes: int) -> int:
    taken = settings.micro_batch_size * processes
    if settings.batch_size % taken:
        raise ConfigError(
            f"batch_size={settings.batch_size} is no multiple of micro_batch_size={settings.micro_batch_size} times "
            f"{processes} processes; every process takes whole micro-batches"
        )
    return settings.batch_size // taken
