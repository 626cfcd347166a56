"""What `tune` tries: the tiles worth compiling, a call of each GEMM, and compiling in processes beside the timing one.

A worker makes the same call on CPU tensors with a driver that only compiles, and so fills Triton's cache on disk: the
process that times finds every kernel there.
"""

import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.records import ExpertWeights
from moe_codegen_kernels.tiles import Tile

BLOCKS_N = (64, 128, 256)
MOST_SUMS = 128  # float32 sums a thread can hold beside all else it needs of 255 registers
MOST_WORKERS = 16
GROUPS_M = (4, 16)  # beside the usual 8


@dataclass(frozen=True)
class LayerSize:
    """D model, F hidden, E experts, K top-k and the kind of expert to tune for."""

    model: int
    hidden: int
    experts: int
    top_k: int
    gated: bool
    dtype: torch.dtype

    @property
    def gemms(self) -> tuple[str, ...]:
        """Those a layer of this size runs, by their names in a bucket."""
        return ("up_gated" if self.gated else "up", "linear", "down_gradient", "ragged_k")


@dataclass(frozen=True)
class Trial:
    """A layer, how many tokens it gets, and what its GEMMs have in common."""

    size: LayerSize
    tokens: int
    path: str
    block_m: int
    processors: int
    target: Any  # Triton's name for the GPU
    shared_memory: int  # bytes a program may use

    def calls(self, device: str) -> dict[str, Callable[[Tile], Any]]:
        """A call of each GEMM, waiting for its tile: on random operands, spread evenly; on the CPU on none."""
        size, rows = self.size, self.tokens * self.size.top_k
        grown = 2 * size.hidden if size.gated else size.hidden

        def operand(*shape: int) -> torch.Tensor:
            values = torch.empty(shape, dtype=size.dtype, device=device)
            return values if device == "cpu" else values.normal_(std=0.02)

        gemms, routing = gpu_module("layer").GEMMS_OF[self.path], gpu_module("routing")
        up, down = operand(size.experts, grown, size.model), operand(size.experts, size.model, size.hidden)
        experts = ExpertWeights(up, None, down, None, "gelu_tanh", size.gated)
        x_RD, h_RG, a_RF = operand(rows, size.model), operand(rows, grown), operand(rows, size.hidden)
        order_R = torch.arange(rows, dtype=torch.int32, device=device)
        s_R = torch.rand(rows, device=device)
        bounds_E = torch.arange(size.experts + 1, device=device) * rows // size.experts
        schedule = routing.tile_schedule(bounds_E.int(), rows, self.block_m, self.processors)
        dots_BR = torch.empty(-(-size.hidden // BLOCKS_N[0]), rows, device=device)
        partials_PG = gpu_module("rows").new_partials(schedule, grown)
        calls: tuple[Callable[[Tile], Any], ...] = (
            lambda tile: gemms.up(x_RD, order_R, 1, experts, True, schedule, tile),
            lambda tile: gemms.linear(a_RF, down, None, schedule, tile),
            lambda tile: gemms.down_gradient(x_RD, experts, h_RG, s_R, partials_PG, dots_BR, schedule, tile),
            lambda tile: gemms.ragged_k(x_RD, a_RF, schedule, tile),
        )
        return dict(zip(size.gemms, calls, strict=True))

    def candidates(self, gemm: str, shipped: Tile) -> list[Tile]:
        """The shipped tile if it can serve here, and around it whatever may fit; `group_m` stays."""
        serves = gemm == "ragged_k" or shipped.block_m == self.block_m
        walks = [(1, False)]  # programs on a processor, and whether the loops are one
        if self.path == "tma":
            walks += [(2, False)] if gemm == "ragged_k" else [(1, True), (2, False)]
        tiles = [shipped] if serves else []
        blocks_n = sorted({*BLOCKS_N, shipped.block_n})
        for block_n, block_k, stages, (programs, flatten) in itertools.product(blocks_n, (32, 64), (3, 4), walks):
            warps = 4 if self.block_m * block_n <= 64 * 128 or programs == 2 else 8
            tile = Tile(self.block_m, block_n, block_k, warps, stages, shipped.group_m, programs, flatten)
            if tile not in tiles and self._may_fit(gemm, tile):
                tiles.append(tile)
        return tiles

    def _may_fit(self, gemm: str, tile: Tile) -> bool:
        """Whether sums fit a thread's registers and what is loaded ahead fits shared memory: seen without compiling."""
        columns = (2 if gemm == "up_gated" else 1) * tile.block_n
        ahead = (tile.stages - 1) * (tile.block_m + columns) * tile.block_k * self.size.dtype.itemsize
        sums = tile.block_m * columns // (32 * tile.warps)
        return sums <= MOST_SUMS and tile.programs * ahead <= self.shared_memory


def regrouped(tile: Tile) -> list[Tile]:
    """The tile with its blocks in other orders: worth a look once its extents are known."""
    return [replace(tile, group_m=group_m) for group_m in GROUPS_M if group_m != tile.group_m]


def compile_pool() -> ProcessPoolExecutor:
    """Processes that compile, one for each processor of the host but one."""
    workers = max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def compile_one(trial: Trial, gemm: str, tile: Tile) -> str | None:
    """Compile one candidate; what is wrong with it, if anything."""
    try:
        with gpu_module("no_device").driver_without_device(trial.target, trial.shared_memory):
            _calls_without_device(trial)[gemm](tile)
    except Exception as error:  # a tile that the compiler cannot make is no reason to end the search
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _calls_without_device(trial: Trial) -> dict[str, Callable[[Tile], Any]]:
    return trial.calls("cpu")
