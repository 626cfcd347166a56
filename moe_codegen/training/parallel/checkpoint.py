"""Checkpoints that any number of processes reads, however they share the model, and whoever wrote them.

`state` in a checkpoint's folder is torch.distributed.checkpoint's: every process writes what it holds, under the
parameters' names. The optimiser's state is always there. The weights are there where the model was sharded; otherwise
they are beside it, as `save_pretrained` writes them.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from transformers import AutoConfig, GenerationConfig

from moe_codegen.architectures.dense import empty_model
from moe_codegen.checkpoint import CheckpointReader, load_tokenizer, resolve_target
from moe_codegen.checkpoint.staging import NO_SPACE, staged_path
from moe_codegen.errors import CheckpointError, OutputError
from moe_codegen.training.parallel.shard import reshard
from moe_codegen.whole_file import writing

STATE = "state"
METADATA = ".metadata"  # what torch writes last
WEIGHTS, OPTIMIZER = "model", "optimizer"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# Settings by parameter, not by group: which parameters share a group depends on who holds what.
BY_PARAMETER = StateDictOptions(flatten_optimizer_state_dict=True)


def save_state(checkpoint: Path, model: nn.Module, optimizer: Optimizer, *, with_weights: bool) -> None:
    """Write the optimiser's state, and the weights where asked for; all processes call it.

    Raises:
        OutputError: it could not be written, here or by another process.
    """
    reshard(model)
    state: dict[str, Any] = {OPTIMIZER: get_optimizer_state_dict(model, optimizer, options=BY_PARAMETER)}
    if with_weights:
        state[WEIGHTS] = get_model_state_dict(model)
    try:
        with _quiet_alone():
            dcp.save(state, checkpoint_id=checkpoint / STATE, no_dist=not dist.is_initialized())
    except dcp.CheckpointException as failure:
        raise _cannot_write(checkpoint, failure) from failure


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Read the optimiser's state; all processes call it, in whatever number.

    Raises:
        CheckpointError: none is there, it was not finished, or it is another model's.
    """
    state = {OPTIMIZER: get_optimizer_state_dict(model, optimizer, options=BY_PARAMETER)}
    _load(checkpoint, state)
    set_optimizer_state_dict(model, optimizer, state[OPTIMIZER], options=BY_PARAMETER)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Read the weights, sharded or not, into a model that is sharded or not; all processes call it.

    Raises:
        CheckpointError: none are there, they were not finished, or they are another model's.
    """
    if has_sharded_weights(checkpoint):
        state = {WEIGHTS: get_model_state_dict(model)}
        _load(checkpoint, state)
        set_model_state_dict(model, state[WEIGHTS])
        return
    reader = CheckpointReader(checkpoint)
    names = _untied(model)
    missing = sorted(names - set(reader))
    if missing:
        raise CheckpointError(f"{checkpoint} lacks {missing[0]}, and {len(missing)} weights in all: another model's")
    options = StateDictOptions(full_state_dict=True, strict=False)  # of tied weights one is stored
    set_model_state_dict(model, {name: reader[name] for name in sorted(names)}, options=options)


def has_sharded_weights(checkpoint: Path) -> bool:
    """Whether `checkpoint` was written by processes that shared the model."""
    if not (checkpoint / STATE / METADATA).exists():
        return False
    stored = dcp.FileSystemReader(checkpoint / STATE).read_metadata().state_dict_metadata
    return any(name.startswith(f"{WEIGHTS}.") for name in stored)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the first process, under the names that `save_pretrained` stores; {} on the others.

    All processes call it.
    """
    weights = get_model_state_dict(model, options=WHOLE)
    stored = _untied(model)
    return {name: weight for name, weight in weights.items() if name in stored}


def merge_checkpoint(checkpoint: Path, out: Path) -> None:
    """Write the model of a sharded checkpoint, and its tokenizer, as a folder that `from_pretrained` loads.

    One process does it, with all weights in its memory.

    Raises:
        CheckpointError: `checkpoint` holds no sharded weights, or is not whole.
        OutputError: `out` is there already, or cannot be written.
    """
    out = resolve_target(out)
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is no folder; give OUT/checkpoints/checkpoint-N of a run")
    if not has_sharded_weights(checkpoint):
        raise CheckpointError(
            f"{checkpoint} holds no sharded weights; a checkpoint whose weights are whole is loaded as it is"
        )
    model = empty_model(AutoConfig.from_pretrained(checkpoint))
    if (checkpoint / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint)
    tokenizer = load_tokenizer(checkpoint, model.config)
    stored = dcp.FileSystemReader(checkpoint / STATE).read_metadata().state_dict_metadata
    entries: dict[str, Any] = {name: stored[f"{WEIGHTS}.{name}"] for name in _untied(model)}
    weights = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    with _quiet_alone():
        dcp.load({WEIGHTS: weights}, checkpoint_id=checkpoint / STATE, no_dist=True)
    staged = staged_path(out)
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with writing(out):
            model.save_pretrained(staged, state_dict=weights)
            if tokenizer is not None:
                tokenizer.save_pretrained(staged)
            staged.replace(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _load(checkpoint: Path, state: dict[str, Any]) -> None:
    if not (checkpoint / STATE / METADATA).exists():
        raise CheckpointError(f"{checkpoint / STATE} has no {METADATA}: it was never finished. Go on from another")
    try:
        with _quiet_alone():
            dcp.load(state, checkpoint_id=checkpoint / STATE, no_dist=not dist.is_initialized())
    except (dcp.CheckpointException, RuntimeError, ValueError) as failure:
        raise CheckpointError(f"{checkpoint} does not fit this model: {_first_line(failure)}") from failure


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """A context in which torch does not warn that there is but one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _untied(model: nn.Module) -> set[str]:
    """Names of the stored parameters and buffers; of tied parameters only the first."""
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    return set(model.state_dict()) - tied


def _cannot_write(checkpoint: Path, failure: dcp.CheckpointException) -> OutputError:
    for process, (error, _) in sorted(failure.failures.items()):
        # torch's archive writer hides the system's error behind one of its own: it wrote less than it was given.
        if (isinstance(error, OSError) and error.errno in NO_SPACE) or "unexpected pos" in str(error):
            return OutputError(f"no space left for {checkpoint}, in process {process}")
    return OutputError(f"{checkpoint} cannot be written: {_first_line(failure)}")


def _first_line(failure: BaseException) -> str:
    return str(failure).partition("\n")[0]
