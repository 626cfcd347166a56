"""Find faster tiles for one GPU and one layer by timing them, and keep them where `tiles.choose` looks first.

No tile is kept that gives other results than torch does: what a compiler gets wrong may well be fast.
"""

import dataclasses
import functools
import itertools
import json
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.tiles import Bucket, Gpu, Tile, buckets_of, cache_path, choose
from moe_codegen_kernels.trials import LayerSize, Trial, TrialGemms, compile_one, regrouped

Measure = Callable[[Callable[[], Any]], float]
TOLERANCE = 2.0**-5  # of a result's largest value: roundings differ by less, one wrong block of a tile by far more


@dataclasses.dataclass(frozen=True)
class Found:
    """One GEMM of one bucket: the tile it had, the fastest one, and the milliseconds of both."""

    rows_per_expert: int
    gemm: str
    before: Tile
    before_ms: float
    after: Tile
    after_ms: float


def milliseconds(run: Callable[[], Any]) -> float:
    """Median time of `run` on the current GPU, by events, after a warm-up; each behind another, so not the host's."""
    for _ in range(3):
        run()
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def tune(
    size: LayerSize,
    tokens: int,
    gpu: Gpu,
    pool: Executor,
    seconds: float = float("inf"),
    device: str = "cuda",
    measure: Measure = milliseconds,
) -> list[Found]:
    """Time candidate tiles for `tokens` tokens, spread evenly, and write the fastest into the user's cache.

    `pool` compiles them. After `seconds` the best so far is kept. Returns one finding for each GEMM; none where an
    earlier search came to its end. Later calls for this GPU use the new bucket from its rows per expert on.
    """
    rows = tokens * size.top_k
    before = choose(gpu, size.dtype.itemsize, rows, size.experts, tma_fits=True)
    searched = f"{size}, {tokens} tokens"
    if before.tuned_for == searched:
        return []
    deadline = time.monotonic() + seconds
    target, shared_memory = gpu_module("no_device").current_gpu()
    shipped = {gemm: getattr(before, gemm) for gemm in size.gemms}
    searches = []
    for block_m in sorted({before.block_m, 64, 128}, key=lambda block_m: (block_m != before.block_m, block_m)):
        trial = Trial(size, tokens, before.path, block_m, gpu.processors, target, shared_memory)
        search = _Search(trial, pool, device, measure)
        searches.append(search)
        if block_m == before.block_m:
            search.time({gemm: [tile] for gemm, tile in shipped.items()}, float("inf"))
        search.time({gemm: trial.candidates(gemm, tile) for gemm, tile in shipped.items()}, deadline)
        search.time({gemm: regrouped(tile) for gemm, tile in search.best().items()}, deadline)
        search.free_operands()  # the next search has its own
    whole = [search for search in searches if search.covers_every_gemm()]
    if not whole:
        raise RuntimeError(f"no tile of some product works on {target}: {searches[0].problem}")
    fastest = min(whole, key=_Search.total)
    best = fastest.best()
    finished = time.monotonic() < deadline
    _remember(gpu, size.dtype, _bucket(before, rows // size.experts, best, searched if finished else ""))
    return [
        Found(
            rows // size.experts, gemm, tile, searches[0].timed[gemm].get(tile, float("inf")),
            best[gemm], fastest.timed[gemm][best[gemm]],
        )
        for gemm, tile in shipped.items()
    ]  # fmt: skip


class _Search:
    """What the tiles of one block_m took so far, in ms."""

    def __init__(self, trial: Trial, pool: Executor, device: str, measure: Measure) -> None:
        self.trial, self.pool, self.measure = trial, pool, measure
        self.gemms = TrialGemms(trial, device)
        self.expected = self.gemms.expected()
        self.timed: dict[str, dict[Tile, float]] = {gemm: {} for gemm in trial.size.gemms}
        self.problem: str | None = None

    def time(self, candidates: dict[str, list[Tile]], deadline: float) -> None:
        """Those not timed yet, as they are compiled, GEMMs by turns: cut short, a search has seen some of each."""
        turns = itertools.zip_longest(*([(gemm, tile) for tile in tiles] for gemm, tiles in candidates.items()))
        jobs = [
            (gemm, tile, self.pool.submit(compile_one, self.trial, gemm, tile))
            for gemm, tile in filter(None, itertools.chain.from_iterable(turns))
            if tile not in self.timed[gemm]
        ]
        for gemm, tile, compiling in jobs:
            if time.monotonic() > deadline:
                compiling.cancel()
            elif problem := compiling.result() or self._problem_of_running(gemm, tile):
                self.problem = problem
            else:
                self.timed[gemm][tile] = self.measure(functools.partial(self.gemms.run, gemm, tile))

    def _problem_of_running(self, gemm: str, tile: Tile) -> str | None:
        results = self.gemms.run(gemm, tile)
        if all(map(_agree, results, self.expected[gemm])):
            return None
        problem = f"{gemm} with {tile} differs from torch's result and is passed over; please report it"
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
        return problem

    def free_operands(self) -> None:
        """Their memory is large; what was timed stays."""
        del self.gemms, self.expected

    def covers_every_gemm(self) -> bool:
        """Whether a bucket can be made of it."""
        return all(self.timed.values())

    def best(self) -> dict[str, Tile]:
        """The fastest tile of each GEMM that has any."""
        return {gemm: min(tiles, key=tiles.__getitem__) for gemm, tiles in self.timed.items() if tiles}

    def total(self) -> float:
        """ms of all GEMMs, each with its fastest tile."""
        return sum(min(tiles.values()) for tiles in self.timed.values())


def _agree(result: Tensor, expected: Tensor) -> bool:
    off = (result.float() - expected.float()).abs().max()
    return bool(off <= TOLERANCE * expected.abs().max())  # NaN is not


def _bucket(before: Bucket, rows_per_expert: int, tiles: dict[str, Tile], tuned_for: str) -> Bucket:
    """`before` with the tiles found; the kind of `up` that was not timed follows the one that was."""
    up = tiles.get("up") or tiles["up_gated"]
    halved = dataclasses.replace(up, block_n=max(16, up.block_n // 2))
    kinds: dict[str, Any] = {"up": up, "up_gated": tiles.get("up_gated", halved)}
    return dataclasses.replace(before, rows_per_expert=rows_per_expert, tuned_for=tuned_for, **kinds | tiles)


def _remember(gpu: Gpu, dtype: torch.dtype, bucket: Bucket) -> None:
    path = cache_path(gpu)
    table = json.loads(path.read_text()) if path.exists() else {}
    kept = table.setdefault(f"{8 * dtype.itemsize}-bit", [])
    kept[:] = [record for record in kept if record["rows_per_expert"] != bucket.rows_per_expert]
    kept.append(bucket.to_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(table, indent=1) + "\n")
    unfinished.replace(path)  # at once: a killed run leaves the old table or the new one
    buckets_of.cache_clear()
