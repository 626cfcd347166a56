"""How a family's checkpoints are laid out on disk, as data: which stored tensors make which canonical ones.

The canonical layout of a family is that of its transformers class. Every other published layout is a list of
reversible rules, so that `extract` can write a checkpoint back in the layout it came from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig

Shapes = Mapping[str, tuple[int, ...]]

# Early releases of transformers saved this table with every rotary family's weights.
ROTARY_TABLE = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


class Transform(Protocol):
    """A lossless rearrangement between stored tensors and canonical ones, in both directions."""

    def to_canonical(self, stored: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The canonical tensors that `stored` hold; views where possible."""
        ...

    def to_stored(self, canonical: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The inverse of `to_canonical`."""
        ...


class Same:
    """Tensors stored as the model wants them, perhaps under another name."""

    def to_canonical(self, stored: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The same tensors."""
        return stored

    def to_stored(self, canonical: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The same tensors."""
        return canonical


class Transposed:
    """A Conv1D weight, `[in, out]`, for a linear layer's `[out, in]`."""

    def to_canonical(self, stored: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """Each tensor transposed."""
        return [tensor.t() for tensor in stored]

    def to_stored(self, canonical: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """Each tensor transposed."""
        return [tensor.t() for tensor in canonical]


@dataclass(frozen=True)
class Joined:
    """Several stored projections that are one canonical tensor, one after the other along its first dimension.

    `sizes(config)` are the rows of each part; `transposed` says the parts are stored as `[in, out]`.
    """

    sizes: Callable[[PreTrainedConfig], list[int]]
    transposed: bool = False

    def to_canonical(self, stored: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The parts, transposed if need be, as one tensor."""
        return [torch.cat([part.t() if self.transposed else part for part in stored])]

    def to_stored(self, canonical: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The one tensor cut into its parts."""
        parts = canonical[0].split(self.sizes(config))
        return [part.t() if self.transposed else part for part in parts]


@dataclass(frozen=True)
class Fused:
    """One stored tensor that holds several canonical projections, one after the other (the reverse of `Joined`)."""

    sizes: Callable[[PreTrainedConfig], list[int]]

    def to_canonical(self, stored: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The one tensor cut into its projections."""
        return list(stored[0].split(self.sizes(config)))

    def to_stored(self, canonical: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The projections as one tensor."""
        return [torch.cat(canonical)]


class HeadInterleaved:
    """One stored tensor with rows ordered (head, projection, head_dim); cutting it in three would mix the heads."""

    def to_canonical(self, stored: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """Query, key and value projections, each with rows ordered (head, head_dim)."""
        by_head = stored[0].unflatten(0, (config.num_attention_heads, 3, -1))
        return [by_head[:, projection].flatten(0, 1) for projection in range(3)]

    def to_stored(self, canonical: list[torch.Tensor], config: PreTrainedConfig) -> list[torch.Tensor]:
        """The three projections interleaved by head again."""
        by_head = [tensor.unflatten(0, (config.num_attention_heads, -1)) for tensor in canonical]
        return [torch.stack(by_head, dim=1).flatten(0, 2)]


@dataclass(frozen=True)
class Rule:
    """`stored` names and `canonical` names that hold the same numbers; `{layer}` stands for a layer's index."""

    stored: tuple[str, ...]
    canonical: tuple[str, ...]
    transform: Transform = field(default_factory=Same)

    def at(self, layer: int) -> "Rule":
        """The rule with its placeholder filled in."""
        return Rule(
            tuple(name.format(layer=layer) for name in self.stored),
            tuple(name.format(layer=layer) for name in self.canonical),
            self.transform,
        )


@dataclass(frozen=True)
class Layout:
    """One published way to store a family's weights.

    Attributes:
        name: as `inspect` prints it and `upcycle.json` records it.
        model_types: the `model_type`s that `config.json` may carry.
        matches: whether a checkpoint of such a type, by its raw config and tensor shapes, is stored this way.
        rules: what differs from the canonical layout; every other tensor keeps its name and shape.
        ignored: regular expressions of stored buffers that hold no weights (masks, rotary tables).
        to_config: the raw `config.json` as the family's own transformers configuration would say it.
    """

    name: str
    model_types: tuple[str, ...]
    matches: Callable[[dict[str, Any], Shapes], bool] = lambda config, shapes: True
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    to_config: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config


def weight_and_bias(
    stored: tuple[str, ...], canonical: tuple[str, ...], weight: Transform, bias: Transform
) -> list[Rule]:
    """The two rules of a linear layer, given its names without `.weight` and `.bias`."""
    return [
        Rule(
            tuple(f"{name}.{kind}" for name in stored),
            tuple(f"{name}.{kind}" for name in canonical),
            transform,
        )
        for kind, transform in (("weight", weight), ("bias", bias))
    ]
