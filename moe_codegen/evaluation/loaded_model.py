"""A model to be evaluated, and what the records say of it: its size, and the hashes of its files."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_codegen.checkpoint import resolve_source, sha256_of
from moe_codegen.evaluation.settings import ModelSettings
from moe_codegen.generation import load_model
from moe_codegen.modeling import MoEConfig
from moe_codegen.modeling.parameters import count_parameters

_HASHED = ("*.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_PACKAGES = ("moe-codegen", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer, and `describe_model` of it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    record: dict[str, Any]


def load(source: str | Path | LoadedModel, settings: ModelSettings, name: str = "") -> LoadedModel:
    """Load the model of a folder or Hub id, named `name` or after its folder; return a loaded one unchanged."""
    if isinstance(source, LoadedModel):
        return source
    dtype = getattr(torch, settings.dtype) if settings.dtype else None
    model, tokenizer = load_model(source, dtype, settings.device)
    name = name or Path(source).name
    return LoadedModel(name, model, tokenizer, describe_model(model, source, name))


def describe_model(model: PreTrainedModel, source: str | Path, name: str) -> dict[str, Any]:
    """Name, kind, family, dtype, device, parameters (total and active), experts, and file -> sha256."""
    config = model.config
    folder = resolve_source(source)
    record: dict[str, Any] = {
        "name": name,
        "kind": "mixture" if isinstance(config, MoEConfig) else "dense",
        "family": config.architecture.family if isinstance(config, MoEConfig) else config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "files": {
            path.name: sha256_of(path) for pattern in _HASHED for path in sorted(folder.glob(pattern)) if path.is_file()
        },
    }
    if isinstance(config, MoEConfig):
        count = count_parameters(config)
        record["parameters"] = {"total": count.total, "active": count.active}
        record |= {"num_experts": config.num_experts, "top_k": config.num_experts_per_tok}
    else:
        total = sum(parameter.numel() for parameter in model.parameters())
        others = any(getattr(config, field, None) for field in ("num_experts", "num_local_experts", "n_routed_experts"))
        # Which of them a token uses in another library's mixture is for that library to say.
        record["parameters"] = {"total": total, "active": None if others else total}
    return record


def describe_versions() -> dict[str, str]:
    """Package -> version of what computed."""
    return {package: metadata.version(package) for package in _PACKAGES}
