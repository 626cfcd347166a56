"""Which tile each GEMM runs with: data per architecture, chosen by rows per expert, never by autotuning.

`tile_tables/<architecture>.json` holds, for 16- and 32-bit elements, a list of buckets. A bucket serves
loads of at least `rows_per_expert` routed rows an expert on average (the only count known without asking
the device), up to the next bucket. All GEMMs of a bucket share `block_m`, and with it one schedule;
`ragged_k` has its own, since its rows are the inner extent. `moe-codegen tune` writes buckets for one GPU
into the user's cache, which come first.
"""

import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

GEMMS = ("up", "up_gated", "linear", "down_gradient", "ragged_k")
SHARED_MEMORY_LIMIT = {  # bytes a program may use; sm_80 and sm_120 also serve smaller cards of their line
    "sm_80": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}


@dataclass(frozen=True)
class Tile:
    """One GEMM's block extents and how a program runs them; `programs` on each processor when persistent."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group_m: int = 8
    programs: int = 1
    flatten: bool = False


@dataclass(frozen=True)
class Bucket:
    """The tiles of one range of loads, and whether its GEMMs are fed by "tma" or by "pointer"."""

    rows_per_expert: int
    path: str
    up: Tile
    up_gated: Tile
    linear: Tile
    down_gradient: Tile
    ragged_k: Tile
    tuned_for: str = ""  # the layer and tokens whose search came to its end

    @property
    def block_m(self) -> int:
        """Rows of a tile in every GEMM that walks the schedule."""
        return self.linear.block_m

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a table."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Bucket":
        """From a table; every GEMM but ragged_k must have one block_m."""
        fields: dict[str, Any] = {k: Tile(**v) if k in GEMMS else v for k, v in record.items()}
        bucket = cls(**fields)
        walkers = {getattr(bucket, gemm).block_m for gemm in GEMMS if gemm != "ragged_k"}
        if len(walkers) != 1:
            raise ValueError(
                f"bucket {bucket.rows_per_expert} has block_m {sorted(walkers)}; its GEMMs share a schedule: "
                "give up, up_gated, linear and down_gradient one block_m"
            )
        return bucket


@dataclass(frozen=True)
class Gpu:
    """What of a GPU decides how kernels are launched."""

    architecture: str
    processors: int
    name: str = ""


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind `device`, its architecture named after the table that serves it."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Gpu("gfx942", properties.multi_processor_count, properties.name)
    architecture = nearest_architecture(10 * properties.major + properties.minor)
    return Gpu(architecture, properties.multi_processor_count, properties.name)


def nearest_architecture(capability: int) -> str:
    """The table for a CUDA capability (90 for 9.0): its own, or else the nearest lower one."""
    listed = sorted(int(name[3:]) for name in SHARED_MEMORY_LIMIT if name.startswith("sm_"))
    lower = [number for number in listed if number <= capability]
    if not lower:
        raise RuntimeError(
            f"compute capability {capability / 10} is below 8.0, which the kernels need; "
            'use experts_implementation="eager" on this GPU'
        )
    return f"sm_{lower[-1]}"


def cache_path(gpu: Gpu) -> Path:
    """Where `moe-codegen tune` keeps what it found for this GPU; MOE_CODEGEN_CACHE moves it."""
    base = os.environ.get("MOE_CODEGEN_CACHE") or Path.home() / ".cache" / "moe_codegen"
    return Path(base) / "tiles" / f"{gpu.name.replace(' ', '_') or gpu.architecture}.json"


@functools.cache
def buckets_of(gpu: Gpu, element_bytes: int) -> tuple[Bucket, ...]:
    """The buckets for this GPU and element size, by falling rows_per_expert; tuned ones take their places."""
    shipped = Path(__file__).parent / "tile_tables" / f"{gpu.architecture}.json"
    buckets: dict[int, Bucket] = {}
    for path in (shipped, cache_path(gpu)):
        if path.exists():
            for record in json.loads(path.read_text()).get(f"{8 * element_bytes}-bit", []):
                bucket = Bucket.from_dict(record)
                buckets[bucket.rows_per_expert] = bucket
    return tuple(sorted(buckets.values(), key=lambda bucket: -bucket.rows_per_expert))


def choose(gpu: Gpu, element_bytes: int, rows: int, experts: int, tma_fits: bool) -> Bucket:
    """The bucket for `rows` routed rows over `experts`; one fed by pointers unless `tma_fits` the tensors."""
    buckets = buckets_of(gpu, element_bytes)
    if not buckets:
        raise ValueError(f"no kernels for {8 * element_bytes}-bit elements on a GPU; use bfloat16, float16 or float32")
    usable = [bucket for bucket in buckets if tma_fits or bucket.path == "pointer"]
    return next((b for b in usable if rows >= b.rows_per_expert * experts), usable[-1])


def precision_of(dtype: torch.dtype) -> str:
    """How `tl.dot` treats float32: exactly, unless torch's own switch for matrix products asks for tf32."""
    asked = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if asked else "ieee"
