"""Find faster tiles for one GPU and one layer by timing them, and keep them where `tiles.choose` looks first."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.records import ExpertWeights
from moe_codegen_kernels.tiles import Bucket, Gpu, Tile, buckets_of, cache_path, choose

Measure = Callable[[Callable[[], Any]], float]
SMALLEST_BLOCK_N = 64


@dataclasses.dataclass(frozen=True)
class Found:
    """One GEMM of one bucket: the tile it had, the fastest one, and the milliseconds of both."""

    rows_per_expert: int
    gemm: str
    before: Tile
    before_ms: float
    after: Tile
    after_ms: float


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """D model, F hidden, E experts, K top-k and the kind of expert to tune for."""

    model: int
    hidden: int
    experts: int
    top_k: int
    gated: bool
    dtype: torch.dtype


def milliseconds(run: Callable[[], Any]) -> float:
    """Median time of `run` on the current GPU, by events, after a warm-up that also compiles."""
    for _ in range(3):
        run()
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def tune(size: LayerSize, tokens: int, gpu: Gpu, device: str = "cuda", measure: Measure = milliseconds) -> list[Found]:
    """Time candidate tiles for `tokens` tokens, spread evenly, and write the fastest into the user's cache.

    Returns one finding for each GEMM. Later calls for this GPU use the new bucket from its rows per expert on.
    """
    rows = tokens * size.top_k
    rows_per_expert = rows // size.experts
    before = choose(gpu, size.dtype.itemsize, rows, size.experts, tma_fits=True)
    best_ms, best = float("inf"), before
    before_ms = {}
    for block_m in sorted({before.block_m, 64, 128}):
        runs = _runs(size, tokens, before.path, block_m, gpu, device)
        tiles, total = {}, 0.0
        for gemm, run in runs.items():
            shipped = getattr(before, gemm)
            timed = {tile: _time(run, tile, measure) for tile in _candidates(shipped, block_m, gemm)}
            tiles[gemm] = min(timed, key=timed.__getitem__)
            total += timed[tiles[gemm]]
            if shipped in timed:
                before_ms[gemm] = timed[shipped]
            before_ms[f"{gemm} {block_m}"] = timed[tiles[gemm]]
        if total < best_ms:
            best_ms, best = total, _bucket(before, rows_per_expert, tiles)
    _remember(gpu, size.dtype, best)
    gemms = [gemm for gemm in ("up", "up_gated", "linear", "down_gradient", "ragged_k") if gemm in before_ms]
    return [
        Found(
            rows_per_expert, gemm, getattr(before, gemm), before_ms[gemm],
            getattr(best, gemm), before_ms[f"{gemm} {best.block_m}"],
        )
        for gemm in gemms
    ]  # fmt: skip


def _candidates(shipped: Tile, block_m: int, gemm: str) -> Iterator[Tile]:
    """The shipped tile, and variations of every extent and of the pipeline around it."""
    if gemm == "ragged_k" or shipped.block_m == block_m:
        yield shipped
    blocks_n = sorted({SMALLEST_BLOCK_N, 128, shipped.block_n})
    for block_n, block_k, stages, group_m in itertools.product(blocks_n, (32, 64), (3, 4), (4, 8)):
        warps = 4 if block_m * block_n <= 64 * 128 else 8
        tile = Tile(block_m, block_n, block_k, warps, stages, group_m)
        if tile != shipped:
            yield tile
            yield dataclasses.replace(tile, flatten=True)


def _time(run: Callable[[Tile], Any], tile: Tile, measure: Measure) -> float:
    from triton.runtime.errors import OutOfResources

    try:
        return measure(lambda: run(tile))
    except OutOfResources:
        return float("inf")


def _runs(
    size: LayerSize, tokens: int, path: str, block_m: int, gpu: Gpu, device: str
) -> dict[str, Callable[[Tile], Any]]:
    """A call of each GEMM on random operands of the layer's size, waiting for its tile."""
    gemms = gpu_module("layer").GEMMS_OF[path]
    routing = gpu_module("routing")
    rows, grown = tokens * size.top_k, 2 * size.hidden if size.gated else size.hidden

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=size.dtype, device=device) * 0.02

    up, down = normal(size.experts, grown, size.model), normal(size.experts, size.model, size.hidden)
    experts = ExpertWeights(up, None, down, None, "gelu_tanh", size.gated)
    x_RD, h_RG, a_RF = normal(rows, size.model), normal(rows, grown), normal(rows, size.hidden)
    order_R = torch.arange(rows, dtype=torch.int32, device=device)
    weights_TK = torch.rand(tokens, size.top_k, device=device)
    bounds = torch.arange(size.experts + 1, device=device) * rows // size.experts
    schedule = routing.tile_schedule(bounds.int(), rows, block_m, gpu.processors)
    gather_R = order_R if path == "pointer" else None
    dots_BR = torch.empty(-(-size.hidden // SMALLEST_BLOCK_N), rows, device=device)
    partials_PG = gpu_module("rows").new_partials(schedule, grown)
    return {
        "up_gated" if size.gated else "up": lambda tile: gemms.up(x_RD, gather_R, 1, experts, True, schedule, tile),
        "linear": lambda tile: gemms.linear(a_RF, None, 1, down, None, schedule, tile),
        "down_gradient": lambda tile: gemms.down_gradient(
            x_RD, experts, h_RG, order_R, weights_TK, partials_PG, dots_BR, schedule, tile
        ),
        "ragged_k": lambda tile: gemms.ragged_k(x_RD, a_RF, schedule, tile),
    }


def _bucket(before: Bucket, rows_per_expert: int, tiles: dict[str, Tile]) -> Bucket:
    """`before` with the tiles found; the kind of `up` that was not timed follows the one that was."""
    up = tiles.get("up") or tiles["up_gated"]
    halved = dataclasses.replace(up, block_n=max(16, up.block_n // 2))
    kinds: dict[str, Any] = {"up": up, "up_gated": tiles.get("up_gated", halved)}
    return dataclasses.replace(before, rows_per_expert=rows_per_expert, **kinds | tiles)


def _remember(gpu: Gpu, dtype: torch.dtype, bucket: Bucket) -> None:
    path = cache_path(gpu)
    table = json.loads(path.read_text()) if path.exists() else {}
    kept = table.setdefault(f"{8 * dtype.itemsize}-bit", [])
    kept[:] = [record for record in kept if record["rows_per_expert"] != bucket.rows_per_expert]
    kept.append(bucket.to_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    buckets_of.cache_clear()
