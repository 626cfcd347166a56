"""From a checkpoint's path to a model and tokenizer that are ready to generate."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from moe_codegen.architectures import DenseCheckpoint, is_known, is_mixture
from moe_codegen.checkpoint import load_tokenizer, read_config, resolve_source
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.modeling import MoEConfig, MoEForCausalLM


def load_model(
    path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a mixture, of a dense checkpoint in any known layout, or of any causal model.

    Args:
        path: a folder, or a hub id.
        dtype: of the weights; None keeps the checkpoint's.
        device: None takes the accelerator where there is one.

    Raises:
        CheckpointError: the checkpoint cannot be used, or has no tokenizer beside it.
        ConfigError: the device cannot be used.
    """
    place = usable_device(device)
    folder = resolve_source(path)
    described, tokenizer = _describe(folder)
    if isinstance(described, DenseCheckpoint):
        model = _dense(folder, described, dtype)
    elif isinstance(described, MoEConfig):
        model = MoEForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    else:
        with _blaming(folder):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")
    return model.to(place).eval(), tokenizer


def check_model(path: str | Path) -> None:
    """Raise what `load_model` would, as far as it shows without reading weights."""
    _describe(resolve_source(path))


def default_device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def usable_device(device: str | torch.device | None) -> torch.device:
    """`device`, or the default one for None. Raises `ConfigError` where nothing can be computed on it."""
    if device is None:
        return default_device()
    try:
        probe = torch.empty(1, device=device)
        probe.cpu()  # the meta device fails here
        return probe.device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device={str(device)!r} cannot be used here ({reason}); give cpu, or leave it out for {default_device()}"
        ) from error


def _describe(folder: Path) -> tuple[DenseCheckpoint | PreTrainedConfig, PreTrainedTokenizerBase]:
    """A dense checkpoint of a known layout, or the configuration of any other model; and the tokenizer."""
    raw = read_config(folder)
    described: DenseCheckpoint | PreTrainedConfig
    if is_mixture(raw):
        described = MoEConfig.from_pretrained(folder)
    # A quantised one is transformers' to load.
    elif is_known(raw["model_type"]) and not _is_plain_gpt2(raw) and not raw.get("quantization_config"):
        described = DenseCheckpoint(folder)
    else:
        with _blaming(folder):
            described = AutoConfig.from_pretrained(folder)
    config = described.config if isinstance(described, DenseCheckpoint) else described
    tokenizer = load_tokenizer(folder, config)
    if tokenizer is None:
        raise CheckpointError(
            f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json of its dense source into it"
        )
    return described, tokenizer


def _is_plain_gpt2(raw: dict[str, Any]) -> bool:
    """Whether it is transformers' own GPT-2; SantaCoder's first layouts are called so, too, with a class of theirs."""
    return raw["model_type"] == "gpt2" and "GPT2LMHeadModel" in (raw.get("architectures") or ())


@contextmanager
def _blaming(folder: Path) -> Iterator[None]:
    """CheckpointError in place of what transformers raises at a model that it cannot load."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load {folder}: {error}") from error


def _dense(folder: Path, dense: DenseCheckpoint, dtype: torch.dtype | None) -> PreTrainedModel:
    model_class = getattr(transformers, f"{dense.architecture.class_prefix}ForCausalLM")
    stored = dense.dtype(next(iter(dense)))
    model = model_class.from_pretrained(None, config=dense.config, state_dict=dict(dense), dtype=dtype or stored)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
