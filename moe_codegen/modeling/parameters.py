"""How many parameters a model has, how many of them one token runs through, and where they are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig

from moe_codegen.architectures import ARCHITECTURES
from moe_codegen.architectures.dense import empty_model
from moe_codegen.architectures.layout import Shapes
from moe_codegen.modeling.configuration import MoEConfig

# In the order a token meets them.
PARTS = ("embeddings", "attention", "router", "experts", "shared expert", "dense FFN", "norms")
# Module names inside a layer -> the part of the model they belong to; the first that fits counts.
LAYER_PARTS = (
    ("mlp.experts.", "experts"),
    ("mlp.gate.", "router"),
    ("mlp.shared_expert.", "shared expert"),
    ("mlp.", "dense FFN"),
    ("attn", "attention"),
)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, each counted once however many times it is used.

    Attributes:
        total: all of them.
        active: those that take part for one token: of the experts only K of E, of everything else all, the
            embedding tables included, as is usual where mixtures are described.
        parts: those of `PARTS` that the model has -> (total, active).
    """

    total: int
    active: int
    parts: Mapping[str, tuple[int, int]]


def parameter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the causal model of `config`, tied ones once; takes no memory for them."""
    return {name: tuple(parameter.shape) for name, parameter in empty_model(config).named_parameters()}


def count_parameters(config: PreTrainedConfig, shapes: Shapes | None = None) -> ParameterCount:
    """Count the parameters of the dense model or mixture of `config`.

    Args:
        config: its configuration.
        shapes: its `parameter_shapes`, where the caller already has them.
    """
    shapes = parameter_shapes(config) if shapes is None else shapes
    chosen, experts = (config.num_experts_per_tok, config.num_experts) if isinstance(config, MoEConfig) else (1, 1)
    family = config.architecture.family if isinstance(config, MoEConfig) else config.model_type
    layers = f"{ARCHITECTURES[family].layers}."
    totals = dict.fromkeys(PARTS, 0)
    for name, shape in shapes.items():
        totals[_part_of(name, layers)] += math.prod(shape)
    # Every expert tensor has E first, so its size divides.
    parts = {
        part: (total, total // experts * chosen if part == "experts" else total)
        for part, total in totals.items()
        if total
    }
    return ParameterCount(
        total=sum(total for total, _ in parts.values()),
        active=sum(active for _, active in parts.values()),
        parts=parts,
    )


def _part_of(name: str, layers: str) -> str:
    if name.startswith(layers):
        inside = name.removeprefix(layers).partition(".")[2]
        return next((part for start, part in LAYER_PARTS if start in inside), "norms")
    return "norms" if "norm" in name or ".ln_" in name else "embeddings"
