"""From a checkpoint's path to a model and tokenizer that are ready to generate."""

from pathlib import Path

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

from moe_codegen.architectures import DenseCheckpoint, is_known
from moe_codegen.checkpoint import load_tokenizer, read_json, resolve_source
from moe_codegen.errors import CheckpointError
from moe_codegen.modeling import MoEConfig, MoEForCausalLM
from moe_codegen.modeling.configuration import MODEL_TYPE_PREFIX


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
    """
    folder = resolve_source(path)
    described, tokenizer = _describe(folder)
    if isinstance(described, DenseCheckpoint):
        model = _dense(folder, described, dtype)
    else:
        model_class = MoEForCausalLM if isinstance(described, MoEConfig) else AutoModelForCausalLM
        model = model_class.from_pretrained(folder, dtype=dtype or "auto")
    return model.to(device or default_device()).eval(), tokenizer


def check_model(path: str | Path) -> None:
    """Raise what `load_model` would, as far as it shows without reading weights."""
    _describe(resolve_source(path))


def default_device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _describe(folder: Path) -> tuple[DenseCheckpoint | PreTrainedConfig, PreTrainedTokenizerBase]:
    """A dense checkpoint of a known layout, or the configuration of any other model; and the tokenizer."""
    model_type = str(read_json(folder / "config.json").get("model_type", ""))
    described: DenseCheckpoint | PreTrainedConfig
    if model_type.startswith(MODEL_TYPE_PREFIX):
        described = MoEConfig.from_pretrained(folder)
    elif is_known(model_type) and not _is_plain_gpt2(folder, model_type):
        described = DenseCheckpoint(folder)
    else:
        described = AutoConfig.from_pretrained(folder)
    config = described.config if isinstance(described, DenseCheckpoint) else described
    tokenizer = load_tokenizer(folder, config)
    if tokenizer is None:
        raise CheckpointError(
            f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json of its dense source into it"
        )
    return described, tokenizer


def _is_plain_gpt2(folder: Path, model_type: str) -> bool:
    """Whether it is transformers' own GPT-2; SantaCoder's first layouts are called so, too, with a class of theirs."""
    return model_type == "gpt2" and "GPT2LMHeadModel" in (read_json(folder / "config.json").get("architectures") or ())


def _dense(folder: Path, dense: DenseCheckpoint, dtype: torch.dtype | None) -> PreTrainedModel:
    model_class = getattr(transformers, f"{dense.architecture.class_prefix}ForCausalLM")
    stored = dense.dtype(next(iter(dense)))
    model = model_class.from_pretrained(None, config=dense.config, state_dict=dict(dense), dtype=dtype or stored)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
