"""Everything a conversion can be asked for, checked before anything is read or written."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from moe_codegen.errors import ConfigError

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
        if self.top_k > self.num_experts:
            raise ConfigError(f"top_k={self.top_k} exceeds num_experts={self.num_experts}; lower top_k or add experts")
        if self.router not in ("normal", "orthogonal", *FROM_TEXT):
            raise ConfigError(
                f"router={self.router!r} is not known; use 'normal', 'orthogonal', 'hidden', 'centroid' or 'ridge'"
            )
        if self.dtype is not None and self.dtype not in DTYPE_NAMES:
            raise ConfigError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPE_NAMES)}")
        if self.router_std <= 0:
            raise ConfigError(
                f"router_std={self.router_std} must be positive: a router of zeros ties, "
                "and always picks the same experts"
            )
        if self.noise_std < 0:
            raise ConfigError(f"noise_std={self.noise_std} must not be negative")
        if not 0 <= self.drop_ratio <= 1:
            raise ConfigError(f"drop_ratio={self.drop_ratio} must lie between 0 and 1")
        if self.shared not in ("base", "average") and not isinstance(self.shared, Mapping):
            raise ConfigError(f"shared={self.shared!r} must be 'base', 'average' or a weight for each expert")
        self.max_shard_bytes  # noqa: B018 (parsed here so that a misspelt size is refused now)

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` in bytes."""
        match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]B)\s*", self.max_shard_size.upper())
        if not match or float(match[1]) <= 0:
            raise ConfigError(f"max_shard_size={self.max_shard_size!r} is not a size such as '500MB' or '4GB'")
        return int(float(match[1]) * UNITS[match[2]])

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return asdict(self)


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
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
        raise ConfigError(f"layers={chosen} must lie between 0 and {num_layers - 1}, the layers of this model")
    return chosen
