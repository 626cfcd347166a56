"""Everything a conversion can be asked for, checked before anything is read or written."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from moe_codegen.errors import ConfigError
from moe_codegen.settings import check_types

RouterInit = Literal["normal", "orthogonal", "hidden", "centroid", "ridge"]
FROM_TEXT = ("hidden", "centroid", "ridge")
DTYPE_NAMES = ("float32", "float16", "bfloat16")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class UpcycleOptions:
    """The settings of `upcycle`, which documents them.

    Raises:
        ConfigError: a value outside its range, or two that exclude each other.
    """

    num_experts: int
    top_k: int
    layers: str | list[int]
    granularity: int
    shared_expert: bool
    renormalise: bool
    shared: str | dict[str, float]
    noise_std: float
    drop_ratio: float
    router: RouterInit
    router_std: float
    dtype: str | None
    max_shard_size: str
    seed: int

    def __post_init__(self) -> None:
        told_better_below = ("router", "shared", "dtype", "max_shard_size")
        check_types(self, {field.name: field.type for field in fields(self) if field.name not in told_better_below})
        if self.top_k > self.num_experts:
            raise ConfigError(f"top_k={self.top_k} exceeds num_experts={self.num_experts}; lower top_k or add experts")
        if self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")
        if self.top_k == 1 and self.renormalise and self.num_experts > 1:
            raise ConfigError(
                "top_k=1 with renormalise=True makes every weight 1, and a constant teaches the router nothing; "
                "set renormalise=False (Switch routing) or top_k=2"
            )
        if self.num_experts % self.granularity or self.top_k % self.granularity:
            raise ConfigError(
                f"granularity={self.granularity} must divide num_experts={self.num_experts} and top_k={self.top_k}: "
                "the pieces of one FFN are chosen together"
            )
        if self.router not in ("normal", "orthogonal", *FROM_TEXT):
            raise ConfigError(
                f"router={self.router!r} is not known; use 'normal', 'orthogonal', 'hidden', 'centroid' or 'ridge'"
            )
        if self.dtype is not None and self.dtype not in DTYPE_NAMES:
            raise ConfigError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPE_NAMES)}")
        if not 0 < self.router_std < math.inf:
            raise ConfigError(
                f"router_std={self.router_std} must be positive: a router of zeros ties, "
                "and always picks the same experts"
            )
        if not 0 <= self.noise_std < math.inf:
            raise ConfigError(f"noise_std={self.noise_std} must be 0 or a positive number")
        if not 0 <= self.drop_ratio <= 1:
            raise ConfigError(f"drop_ratio={self.drop_ratio} must lie between 0 and 1")
        if self.shared not in ("base", "average") and not isinstance(self.shared, Mapping):
            raise ConfigError(f"shared={self.shared!r} must be 'base', 'average' or a weight for each expert")
        parse_size(self.max_shard_size)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """`dtype` as torch has it."""
        return getattr(torch, self.dtype) if self.dtype else None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return asdict(self)


def parse_size(max_shard_size: str) -> int:
    """Bytes of a size such as '500MB' or '4GB'; ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]B)\s*", str(max_shard_size).upper())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"max_shard_size={max_shard_size!r} is not a size such as '500MB' or '4GB'")
    return int(float(match[1]) * UNITS[match[2]])


def parse_layers(layers: str | Iterable[int], num_layers: int) -> list[int]:
    """Layer indices from 'all', from a list, or from text such as '0,2,8-11'.

    Raises:
        ConfigError: no such text, or a layer the model has not.
    """
    if layers == "all":
        return list(range(num_layers))
    if isinstance(layers, str):
        parts = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part) for part in layers.split(",")]
        if not all(parts):
            raise ConfigError(f"layers={layers!r} is neither 'all' nor a list such as '0,2,8-11'")
        ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
        layers = [index for indices in ranges for index in indices]
    chosen = sorted(set(layers))
    if not chosen:
        raise ConfigError("layers names none; give 'all', or at least one")
    if chosen[0] < 0 or chosen[-1] >= num_layers:
        raise ConfigError(f"layers={chosen} must lie between 0 and {num_layers - 1}, the layers of this model")
    return chosen
