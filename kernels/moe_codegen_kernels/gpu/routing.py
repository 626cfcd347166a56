"""Routing on the device: no host synchronisation, no atomics, the same bits every time.

route:         scores = softmax(logits); the TOP_K largest by (score, lower expert first); renormalise
routing_plan:  counts_CE per chunk of slots -> exclusive scan -> place each slot, stable
tile_schedule: which rows each GEMM tile owns, longest expert first

    ids_R       int    slot (token*K + choice) -> expert; E or more: none
    counts_CE   int32  slots of chunk c that go to expert e; after the scan, where the first of them goes
    order_R     int32  sorted row -> slot
    inverse_R   int32  slot -> sorted row
    offsets_E   int32  E + 1 bounds of the experts' rows
    schedule    int32  [0] number of tiles, [1 .. E] experts by falling row count, then for each tile
                       (expert, first row, end of the expert's rows): all it has to know in one read

C chunks, E experts (BLOCK_E: power of two that holds E and the sentinel), R routed rows, T tokens.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_codegen_kernels.gpu import OPTIONS


@triton.jit(do_not_specialize=["T"])
def route_kernel(
    logits_ptr, weights_ptr, ids_ptr, T, stride_t, stride_e,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, RENORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK_T tokens. Ids are distinct and in range whatever the logits hold."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    expert_E = tl.arange(0, BLOCK_E)
    mask = (token_T < T)[:, None] & (expert_E < EXPERTS)[None, :]
    address = token_T[:, None].to(tl.int64) * stride_t + expert_E[None, :] * stride_e
    logits = tl.load(logits_ptr + address, mask=mask, other=float("-inf")).to(tl.float32)
    top_T = tl.max(logits, axis=1)
    total_T = tl.sum(tl.where(mask, tl.exp(logits - top_T[:, None]), 0.0), axis=1)
    # A total order on (logit, lower expert first): the float's bits made monotone, above the expert's number.
    bits = logits.to(tl.int32, bitcast=True)
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (monotone.to(tl.int64) << 32) + (BLOCK_E - expert_E)[None, :]
    LOWEST: tl.constexpr = -0x8000000000000000
    key = tl.where((expert_E < EXPERTS)[None, :], key, LOWEST)
    taken = tl.zeros([BLOCK_T, BLOCK_E], tl.int1)
    choice_K = tl.arange(0, BLOCK_K)
    weights = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    ids = tl.zeros([BLOCK_T, BLOCK_K], tl.int64)
    for choice in tl.static_range(TOP_K):
        best_T = tl.max(tl.where(taken, LOWEST, key), axis=1)
        is_best = key == best_T[:, None]
        taken = taken | is_best
        weight_T = tl.exp(tl.sum(tl.where(is_best, logits, 0.0), axis=1) - top_T)
        ids_T = tl.sum(tl.where(is_best, expert_E[None, :], 0), axis=1)
        now = (choice_K == choice)[None, :]
        weights = tl.where(now, weight_T[:, None], weights)
        ids = tl.where(now, ids_T[:, None].to(tl.int64), ids)
    if RENORMALISE:
        total_T = tl.sum(weights, axis=1)
    slot = token_T[:, None].to(tl.int64) * TOP_K + choice_K[None, :]
    keep = (token_T < T)[:, None] & (choice_K < TOP_K)[None, :]
    tl.store(ids_ptr + slot, ids, mask=keep)
    tl.store(weights_ptr + slot, weights / total_T[:, None], mask=keep)


@triton.jit(do_not_specialize=["R"])
def count_kernel(ids_ptr, counts_ptr, R, EXPERTS, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """counts_CE of one chunk of BLOCK_R slots; sentinels are counted as expert E."""
    chunk = tl.program_id(0)
    slot_R = chunk * BLOCK_R + tl.arange(0, BLOCK_R)
    id_R = tl.load(ids_ptr + slot_R, mask=slot_R < R, other=0).to(tl.int32)
    id_R = tl.where(slot_R < R, tl.minimum(id_R, EXPERTS), BLOCK_E)
    one_hot = (id_R[:, None] == tl.arange(0, BLOCK_E)[None, :]).to(tl.int32)
    tl.store(counts_ptr + chunk * BLOCK_E + tl.arange(0, BLOCK_E), tl.sum(one_hot, axis=0))


@triton.jit(do_not_specialize=["CHUNKS"])
def scan_kernel(counts_ptr, offsets_ptr, CHUNKS, EXPERTS, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr):
    """counts_CE -> the sorted row of each chunk's first slot of each expert, in place; and offsets_E."""
    expert_E = tl.arange(0, BLOCK_E)
    total_E = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, CHUNKS, BLOCK_C):
        chunk_C = first + tl.arange(0, BLOCK_C)
        address = chunk_C[:, None] * BLOCK_E + expert_E[None, :]
        total_E += tl.sum(tl.load(counts_ptr + address, mask=(chunk_C < CHUNKS)[:, None], other=0), axis=0)
    next_E = tl.cumsum(total_E, axis=0) - total_E
    tl.store(offsets_ptr + expert_E, next_E, mask=expert_E <= EXPERTS)
    for first in range(0, CHUNKS, BLOCK_C):
        chunk_C = first + tl.arange(0, BLOCK_C)
        address = chunk_C[:, None] * BLOCK_E + expert_E[None, :]
        counts = tl.load(counts_ptr + address, mask=(chunk_C < CHUNKS)[:, None], other=0)
        before = tl.cumsum(counts, axis=0) - counts
        tl.store(counts_ptr + address, before + next_E[None, :], mask=(chunk_C < CHUNKS)[:, None])
        next_E += tl.sum(counts, axis=0)


@triton.jit(do_not_specialize=["R"])
def place_kernel(ids_ptr, counts_ptr, order_ptr, inverse_ptr, R, EXPERTS, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """order_R and inverse_R of one chunk: its first slot's row plus each slot's rank within the chunk."""
    chunk = tl.program_id(0)
    expert_E = tl.arange(0, BLOCK_E)
    slot_R = chunk * BLOCK_R + tl.arange(0, BLOCK_R)
    id_R = tl.load(ids_ptr + slot_R, mask=slot_R < R, other=0).to(tl.int32)
    id_R = tl.where(slot_R < R, tl.minimum(id_R, EXPERTS), BLOCK_E)
    one_hot = (id_R[:, None] == expert_E[None, :]).to(tl.int32)
    first_E = tl.load(counts_ptr + chunk * BLOCK_E + expert_E)
    row_R = tl.sum(one_hot * (tl.cumsum(one_hot, axis=0) - 1 + first_E[None, :]), axis=1)
    tl.store(order_ptr + row_R, slot_R, mask=slot_R < R)
    tl.store(inverse_ptr + slot_R, row_R, mask=slot_R < R)


@triton.jit(do_not_specialize=["NUM_ENTRIES"])
def schedule_kernel(
    offsets_ptr, schedule_ptr, NUM_ENTRIES, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Entries program_id*BLOCK_S and on of the schedule; program 0 writes its head too."""
    expert_E = tl.arange(0, BLOCK_E)
    real_E = expert_E < EXPERTS
    first_E = tl.load(offsets_ptr + expert_E, mask=real_E, other=0)
    count_E = tl.load(offsets_ptr + expert_E + 1, mask=real_E, other=0) - first_E
    tiles_E = (count_E + BLOCK_M - 1) // BLOCK_M
    rank_E = tl.zeros([BLOCK_E], tl.int32)
    first_tile_E = tl.zeros([BLOCK_E], tl.int32)
    for other in range(EXPERTS):
        count = tl.load(offsets_ptr + other + 1) - tl.load(offsets_ptr + other)
        is_before_E = (count > count_E) | ((count == count_E) & (other < expert_E))
        rank_E += is_before_E.to(tl.int32)
        first_tile_E += tl.where(is_before_E, (count + BLOCK_M - 1) // BLOCK_M, 0)
    if tl.program_id(0) == 0:
        tl.store(schedule_ptr, tl.sum(tiles_E, axis=0))
        tl.store(schedule_ptr + 1 + rank_E, expert_E, mask=real_E)
    entry_S = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    inside = entry_S[:, None] - first_tile_E[None, :]
    owns = ((inside >= 0) & (inside < tiles_E[None, :]) & real_E[None, :]).to(tl.int32)
    expert_S = tl.sum(owns * expert_E[None, :], axis=1)
    row_S = tl.sum(owns * (first_E[None, :] + inside * BLOCK_M), axis=1)
    end_S = tl.sum(owns * (first_E + count_E)[None, :], axis=1)
    is_tile_S = (tl.sum(owns, axis=1) > 0) & (entry_S < NUM_ENTRIES)
    entry_ptr = schedule_ptr + 1 + EXPERTS + 3 * entry_S
    tl.store(entry_ptr, expert_S, mask=is_tile_S)
    tl.store(entry_ptr + 1, row_S, mask=is_tile_S)
    tl.store(entry_ptr + 2, end_S, mask=is_tile_S)


ONE_HOT_ELEMENTS = 16384  # of a chunk's one-hot matrix: 64 registers a thread of 8 warps


def route(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """weights_TK float32 and expert_ids_TK int64, in one launch."""
    tokens, experts = logits_TE.shape
    weights_TK = torch.empty(tokens, top_k, dtype=torch.float32, device=logits_TE.device)
    expert_ids_TK = torch.empty(tokens, top_k, dtype=torch.int64, device=logits_TE.device)
    block_e = triton.next_power_of_2(experts)
    block_t = max(1, min(64, 4096 // block_e))
    if tokens > 0:
        route_kernel[(triton.cdiv(tokens, block_t),)](
            logits_TE, weights_TK, expert_ids_TK, tokens, *logits_TE.stride(),
            EXPERTS=experts, TOP_K=top_k, RENORMALISE=renormalise,
            BLOCK_T=block_t, BLOCK_E=block_e, BLOCK_K=triton.next_power_of_2(top_k), **OPTIONS,
        )  # fmt: skip
    return weights_TK, expert_ids_TK


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """order_R, inverse_R, offsets_E, in three launches."""
    ids_R = expert_ids_TK.reshape(-1).contiguous()
    rows = ids_R.numel()
    block_e = triton.next_power_of_2(num_experts + 1)
    block_r = max(16, ONE_HOT_ELEMENTS // block_e)
    chunks = triton.cdiv(rows, block_r)
    counts_CE, order_R, inverse_R, offsets_E = (
        torch.empty(size, dtype=torch.int32, device=ids_R.device)
        for size in (chunks * block_e, rows, rows, num_experts + 1)
    )
    blocks = {"BLOCK_E": block_e, "num_warps": 8, **OPTIONS}
    if rows > 0:
        count_kernel[(chunks,)](ids_R, counts_CE, rows, num_experts, BLOCK_R=block_r, **blocks)
    block_c = min(64, max(1, ONE_HOT_ELEMENTS // block_e))
    scan_kernel[(1,)](counts_CE, offsets_E, chunks, num_experts, BLOCK_C=block_c, **blocks)
    if rows > 0:
        place_kernel[(chunks,)](ids_R, counts_CE, order_R, inverse_R, rows, num_experts, BLOCK_R=block_r, **blocks)
    return order_R, inverse_R, offsets_E


class Schedule(NamedTuple):
    """What a launch needs to know of load and machine; `most_tiles` bounds what only the device knows."""

    entries: Tensor
    offsets_E: Tensor
    most_tiles: int
    block_m: int
    processors: int

    @property
    def experts(self) -> int:
        """E."""
        return self.offsets_E.numel() - 1


def tile_schedule(offsets_E: Tensor, rows: int, block_m: int, processors: int) -> Schedule:
    """The tiles of `block_m` rows that cover `rows` routed rows, in one launch."""
    experts = offsets_E.numel() - 1
    most_tiles = rows // block_m + min(experts, rows)
    entries = torch.empty(1 + experts + 3 * most_tiles, dtype=torch.int32, device=offsets_E.device)
    block_e = triton.next_power_of_2(experts)
    block_s = min(512, max(16, ONE_HOT_ELEMENTS // 2 // block_e))
    schedule_kernel[(triton.cdiv(max(most_tiles, 1), block_s),)](
        offsets_E, entries, most_tiles, EXPERTS=experts, BLOCK_M=block_m,
        BLOCK_S=block_s, BLOCK_E=block_e, num_warps=8, **OPTIONS,
    )  # fmt: skip
    return Schedule(entries, offsets_E, most_tiles, block_m, processors)
