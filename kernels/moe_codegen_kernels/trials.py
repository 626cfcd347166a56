"""What `tune` tries: the tiles worth compiling, and compiling in processes beside the timing one.

A worker makes the same call on CPU tensors with a driver that only compiles, and so fills Triton's cache on disk: the
process that times finds every kernel there.
"""

import functools
import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import oracle
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

    @property
    def rows(self) -> int:
        """R."""
        return self.tokens * self.size.top_k

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


class TrialGemms:
    """The GEMMs of a trial on random operands, rows spread evenly; without a device, to compile and not to run."""

    def __init__(self, trial: Trial, device: str | None) -> None:
        self.size, self.kernels = trial.size, gpu_module("layer").GEMMS_OF[trial.path]
        model, hidden, experts, rows = trial.size.model, trial.size.hidden, trial.size.experts, trial.rows
        grown = 2 * hidden if trial.size.gated else hidden
        place = device or "cpu"

        def operand(*shape: int) -> Tensor:
            """Values whose products with others are of their own size."""
            values = torch.empty(shape, dtype=trial.size.dtype, device=place)
            return values.normal_(std=shape[-1] ** -0.5 if len(shape) == 3 else 1.0) if device else values

        up, down = operand(experts, grown, model), operand(experts, model, hidden)
        self.experts = ExpertWeights(up, None, down, None, "gelu_tanh", trial.size.gated)
        self.x_RD, self.h_RG, self.a_RF = operand(rows, model), operand(rows, grown), operand(rows, hidden)
        self.order_R = torch.arange(rows, dtype=torch.int32, device=place)
        self.s_R = torch.rand(rows, device=place)
        offsets_E = (torch.arange(experts + 1, device=place) * rows // experts).int()
        self.schedule = gpu_module("routing").tile_schedule(offsets_E, rows, trial.block_m, trial.processors)

    def run(self, gemm: str, tile: Tile) -> tuple[Tensor, ...]:
        """One GEMM by its kernel; the backward one with the sums that end what it begins."""
        kernels, schedule, experts, rows = self.kernels, self.schedule, self.experts, gpu_module("rows")
        if gemm == "linear":
            return (kernels.linear(self.a_RF, experts.down, None, schedule, tile),)
        if gemm == "ragged_k":
            return (kernels.ragged_k(self.x_RD, self.a_RF, schedule, tile),)
        if gemm == "down_gradient":
            dots_BR = self.s_R.new_empty(-(-self.size.hidden // tile.block_n), self.s_R.numel())
            partials_PG = rows.new_partials(schedule, self.h_RG.shape[1])
            dh_RG, sa_RF = kernels.down_gradient(
                self.x_RD, experts, self.h_RG, self.s_R, partials_PG, dots_BR, schedule, tile
            )
            d_bias_EG = rows.sum_partials(partials_PG, schedule, experts.up[:, :, 0])
            ds_R = rows.routing_weight_gradient(dots_BR, self.order_R, schedule.offsets_E, self.s_R)
            return dh_RG, sa_RF, d_bias_EG, ds_R
        return kernels.up(self.x_RD, self.order_R, 1, experts, True, schedule, tile)

    def expected(self) -> dict[str, tuple[Tensor, ...]]:
        """What `run` must give for each GEMM, by plain torch."""
        experts, offsets_E, kind = self.experts, self.schedule.offsets_E, (self.experts.activation, self.size.gated)
        up_RG = oracle.grouped_gemm(self.x_RD, experts.up, None, offsets_E)
        h_RG, s_R = self.h_RG.clone().requires_grad_(), self.s_R.clone().requires_grad_()
        sa_RF = s_R[:, None].to(h_RG.dtype) * oracle.activated(h_RG, *kind)
        y_RD = oracle.grouped_gemm(sa_RF, experts.down, None, offsets_E)
        dh_RG, ds_R = torch.autograd.grad(y_RD, (h_RG, s_R), self.x_RD)
        d_bias_EG1 = oracle.grouped_gemm_ragged_k(dh_RG, torch.ones_like(dh_RG[:, :1]), offsets_E)
        results = (
            (oracle.activated(up_RG, *kind), up_RG),
            (oracle.grouped_gemm(self.a_RF, experts.down, None, offsets_E),),
            (dh_RG, sa_RF.detach(), d_bias_EG1[:, :, 0], ds_R),
            (oracle.grouped_gemm_ragged_k(self.x_RD, self.a_RF, offsets_E),),
        )
        return dict(zip(self.size.gemms, results, strict=True))


def compile_pool() -> ProcessPoolExecutor:
    """Processes that compile, one for each processor of the host but one."""
    workers = max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def compile_one(trial: Trial, gemm: str, tile: Tile) -> str | None:
    """Compile one candidate; what is wrong with it, if anything."""
    try:
        with gpu_module("no_device").driver_without_device(trial.target, trial.shared_memory):
            _gemms_without_device(trial).run(gemm, tile)
    except Exception as error:  # a tile that the compiler cannot make is no reason to end the search
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _gemms_without_device(trial: Trial) -> TrialGemms:
    return TrialGemms(trial, None)
