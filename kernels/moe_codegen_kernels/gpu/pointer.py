"""Grouped GEMMs fed by pointers: any architecture, dtype, size and alignment.

    linear    out_RN[r] = matrices[e] @ rows[r] + bias[e]
    up        h = up[e] @ x + up_bias[e];  a = f(h), or f(h_gate) * h_value when gated
    down_gradient   with dA = dO @ down[e] and a row's routing weight s:
              dh = s dA f'(h),  sa = s a,  partial dots <dA, a>,  partial column sums of dh
    ragged_k  out_EMN[e] = sum over the expert's rows of left_RM[r] right_RN[r]^T

    order_R   int32  sorted row -> slot; `up` gathers each row's token in the load
    s_R       float32  routing weight of each sorted row
    schedule  int32  see routing.py: which expert and rows each tile owns
    partials_PN, dots_BR  float32  see rows.py

In a kernel M, N, K are GEMM extents; N and K of a whole matrix, BLOCK_* of a tile. Row addresses are 64-bit:
R*F passes 2^31 at 131 thousand tokens of SantaCoder's shape. Rows past an expert's end read its first row
instead, so loads need no row mask; only stores and sums do.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_codegen_kernels.gpu import OPTIONS
from moe_codegen_kernels.gpu.epilogues import (
    EPILOGUE_COLUMNS,
    activate,
    add_product,
    bias_of,
    column_parts,
    gradients,
    partial_index,
    ragged_tile,
    swept,
)
from moe_codegen_kernels.gpu.routing import Schedule
from moe_codegen_kernels.records import ExpertWeights
from moe_codegen_kernels.tiles import Tile, precision_of


@triton.jit
def tile_rows(row, end, BLOCK_M: tl.constexpr):
    """Which rows of the tile are the expert's, and the 64-bit row to read for each."""
    row_M = row + tl.arange(0, BLOCK_M)
    is_row_M = row_M < end
    return is_row_M, tl.where(is_row_M, row_M, row).to(tl.int64)


@triton.jit
def tile_ptrs(ptr, row, column_N, WIDTH, BLOCK_M: tl.constexpr):
    """The tile's elements in a contiguous (R, WIDTH): one 64-bit base, 32-bit steps, half the registers."""
    base = ptr + row.to(tl.int64) * WIDTH
    return base + (tl.arange(0, BLOCK_M)[:, None] * WIDTH + column_N[None, :])


@triton.jit
def accumulate(
    rows_ptr, matrix_ptr, source_M, column_N, N, K, stride_row, stride_n, stride_k, pair_distance,
    PAIR: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """rows @ matrix^T for one tile; with PAIR also for the columns `pair_distance` further on."""
    k_K = tl.arange(0, BLOCK_K)
    row_ptrs = rows_ptr + source_M[:, None] * stride_row + k_K[None, :]
    matrix_ptrs = matrix_ptr + column_N.to(tl.int64)[None, :] * stride_n + k_K[:, None] * stride_k
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    second = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN:
            a = tl.load(row_ptrs)
            b = tl.load(matrix_ptrs)
        else:
            is_k_K = k + k_K < K
            mask = is_k_K[:, None] & (column_N < N)[None, :]
            a = tl.load(row_ptrs, mask=is_k_K[None, :], other=0.0)
            b = tl.load(matrix_ptrs, mask=mask, other=0.0)
        acc = add_product(acc, a, b, PRECISION)
        if PAIR:
            if EVEN:
                b = tl.load(matrix_ptrs + pair_distance)
            else:
                b = tl.load(matrix_ptrs + pair_distance, mask=mask, other=0.0)
            second = add_product(second, a, b, PRECISION)
        row_ptrs += BLOCK_K
        matrix_ptrs += BLOCK_K * stride_k
    return acc, second


@triton.jit
def linear_kernel(
    rows_ptr, matrices_ptr, bias_ptr, out_ptr, schedule_ptr, N, K, EXPERTS, stride_e, stride_n, stride_k,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of out_RN."""
    num_m_tiles = tl.load(schedule_ptr)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m_tiles * num_n_tiles:
        return
    expert, row, end, n = ragged_tile(tl.program_id(0), num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M)
    is_row_M, source_M = tile_rows(row, end, BLOCK_M)
    column_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix_ptr = matrices_ptr + expert.to(tl.int64) * stride_e
    acc, _ = accumulate(
        rows_ptr, matrix_ptr, source_M, column_N, N, K, K, stride_n, stride_k, 0,
        False, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if HAS_BIAS:
        acc += bias_of(bias_ptr, expert, column_N, N)
    mask = is_row_M[:, None] & (column_N < N)[None, :]
    tl.store(tile_ptrs(out_ptr, row, column_N, N, BLOCK_M), acc, mask=mask)


@triton.jit
def up_kernel(
    x_ptr, order_ptr, up_ptr, bias_ptr, h_ptr, a_ptr, schedule_ptr,
    N, K, EXPERTS, stride_x, stride_e, stride_n, stride_k,
    TOP_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr, KEEP: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of a_RF (N = F), and of h_RG where kept (KEEP)."""
    num_m_tiles = tl.load(schedule_ptr)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m_tiles * num_n_tiles:
        return
    expert, row, end, n = ragged_tile(tl.program_id(0), num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M)
    is_row_M, sorted_M = tile_rows(row, end, BLOCK_M)
    token_M = (tl.load(order_ptr + sorted_M) // TOP_K).to(tl.int64)
    column_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    up_ptr += expert.to(tl.int64) * stride_e
    h, value = accumulate(
        x_ptr, up_ptr, token_M, column_N, N, K, stride_x, stride_n, stride_k,
        tl.cast(N, tl.int64) * stride_n, GATED, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    G: tl.constexpr = 2 if GATED else 1
    if HAS_BIAS:
        h += bias_of(bias_ptr, G * expert, column_N, N)
    a = activate(h, ACTIVATION)
    mask = is_row_M[:, None] & (column_N < N)[None, :]
    h_ptrs = tile_ptrs(h_ptr, row, column_N, G * N, BLOCK_M) if KEEP else None
    if KEEP:
        tl.store(h_ptrs, h, mask=mask)
    if GATED:
        if HAS_BIAS:
            value += bias_of(bias_ptr, G * expert + 1, column_N, N)
        a *= value
        if KEEP:
            tl.store(h_ptrs + N, value, mask=mask)
    tl.store(tile_ptrs(a_ptr, row, column_N, N, BLOCK_M), a, mask=mask)


@triton.jit
def gradient_columns(
    dA, s, row, is_row_M, column, h_ptr, dh_ptr, sa_ptr, partials_ptr, N,
    GATED: tl.constexpr, WRITE_PARTIALS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The columns of dh_RG and sa_RF that dA covers, from `column` on; returns each row's <dA, a>.

    A row that is not the expert's has s = 0 and h = 0, and so adds nothing to the sums.
    """
    BLOCK_M: tl.constexpr = dA.shape[0]
    G: tl.constexpr = 2 if GATED else 1
    column_N = column + tl.arange(0, dA.shape[1])
    is_column_N = column_N < N
    mask = is_row_M[:, None] & is_column_N[None, :]
    h_ptrs = tile_ptrs(h_ptr, row, column_N, G * N, BLOCK_M)
    dh_ptrs = tile_ptrs(dh_ptr, row, column_N, G * N, BLOCK_M)
    h = tl.load(h_ptrs, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(h_ptrs + N, mask=mask, other=0.0).to(tl.float32) if GATED else None
    dh, d_value, sa, dots = gradients(dA, s, h, value, GATED, ACTIVATION)
    tl.store(dh_ptrs, dh, mask=mask)
    tl.store(tile_ptrs(sa_ptr, row, column_N, N, BLOCK_M), sa, mask=mask)
    if GATED:
        tl.store(dh_ptrs + N, d_value, mask=mask)
    if WRITE_PARTIALS:
        tl.store(partials_ptr + column_N, tl.sum(dh, axis=0), mask=is_column_N)
        if GATED:
            tl.store(partials_ptr + N + column_N, tl.sum(d_value, axis=0), mask=is_column_N)
    return tl.sum(dots, axis=1)


@triton.jit(do_not_specialize=["R"])
def down_gradient_kernel(
    rows_ptr, down_ptr, h_ptr, s_ptr, dh_ptr, sa_ptr, partials_ptr, dots_ptr, schedule_ptr,
    R, N, K, EXPERTS, stride_e, stride_n, stride_k,
    GATED: tl.constexpr, WRITE_PARTIALS: tl.constexpr, WRITE_DOTS: tl.constexpr, ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dh_RG and sa_RF (N = F, K = D), with its partial sums."""
    num_m_tiles = tl.load(schedule_ptr)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    if tl.program_id(0) >= num_m_tiles * num_n_tiles:
        return
    expert, row, end, n = ragged_tile(tl.program_id(0), num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M)
    is_row_M, source_M = tile_rows(row, end, BLOCK_M)
    column_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    down_ptr += expert.to(tl.int64) * stride_e
    dA, _ = accumulate(
        rows_ptr, down_ptr, source_M, column_N, N, K, K, stride_n, stride_k, 0,
        False, EVEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    row_M = row + tl.arange(0, BLOCK_M)
    s = tl.load(s_ptr + row_M, mask=is_row_M, other=0.0)[:, None]
    G: tl.constexpr = 2 if GATED else 1
    if WRITE_PARTIALS:
        partials_ptr += partial_index(row, expert, BLOCK_M).to(tl.int64) * (G * N)
    parts = column_parts(dA)
    dots_M = tl.zeros([BLOCK_M], tl.float32)
    for part in tl.static_range(len(parts)):
        dots_M += gradient_columns(
            parts[part], s, row, is_row_M, n * BLOCK_N + part * EPILOGUE_COLUMNS,
            h_ptr, dh_ptr, sa_ptr, partials_ptr, N, GATED, WRITE_PARTIALS, ACTIVATION,
        )  # fmt: skip
    if WRITE_DOTS:
        tl.store(dots_ptr + n.to(tl.int64) * R + row_M, dots_M, mask=is_row_M)


@triton.jit
def ragged_k_kernel(
    left_ptr, right_ptr, out_ptr, offsets_ptr, schedule_ptr, M, N,
    PRECISION: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of out_EMN, experts by falling row count; an expert without rows gets zeros."""
    num_m_tiles = tl.cdiv(M, BLOCK_M)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    expert = tl.load(schedule_ptr + 1 + tile // (num_m_tiles * num_n_tiles)).to(tl.int64)
    m, n = swept(tile % (num_m_tiles * num_n_tiles), num_m_tiles, num_n_tiles, GROUP_M)
    m_M = m * BLOCK_M + tl.arange(0, BLOCK_M)
    n_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    row_K = start.to(tl.int64) + tl.arange(0, BLOCK_K)
    left_ptrs = left_ptr + row_K[None, :] * M + m_M[:, None]
    right_ptrs = right_ptr + row_K[:, None] * N + n_N[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for row in range(start, end, BLOCK_K):
        is_row_K = row + tl.arange(0, BLOCK_K) < end
        left_mask = is_row_K[None, :] if EVEN else is_row_K[None, :] & (m_M < M)[:, None]
        right_mask = is_row_K[:, None] if EVEN else is_row_K[:, None] & (n_N < N)[None, :]
        left = tl.load(left_ptrs, mask=left_mask, other=0.0)
        right = tl.load(right_ptrs, mask=right_mask, other=0.0)
        acc = add_product(acc, left, right, PRECISION)
        left_ptrs += BLOCK_K * tl.cast(M, tl.int64)
        right_ptrs += BLOCK_K * tl.cast(N, tl.int64)
    address = expert * M * N + m_M.to(tl.int64)[:, None] * N + n_N[None, :]
    tl.store(out_ptr + address, acc, mask=(m_M < M)[:, None] & (n_N < N)[None, :])


def linear(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, schedule: Schedule, tile: Tile) -> Tensor:
    """out_RN; matrices may be transposed views."""
    _, columns, inner = matrices_ENK.shape
    out_RN = rows_RK.new_empty(rows_RK.shape[0], columns)
    linear_kernel[grid(schedule, columns, tile)](
        rows_RK, matrices_ENK, bias_EN, out_RN, schedule.entries,
        columns, inner, schedule.experts, *matrices_ENK.stride(),
        HAS_BIAS=bias_EN is not None, **_constants(tile, columns, inner, rows_RK.dtype),
    )  # fmt: skip
    return out_RN


def up(
    hidden_TD: Tensor,
    order_R: Tensor,
    top_k: int,
    experts: ExpertWeights[Tensor],
    keep: bool,
    schedule: Schedule,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """a_RF and h_RG (empty unless `keep`), each row's token gathered as it is loaded."""
    _, grown, inner = experts.up.shape
    columns = grown // 2 if experts.gated else grown
    rows = order_R.numel()
    h_RG = hidden_TD.new_empty((rows, grown) if keep else (0,))
    a_RF = hidden_TD.new_empty(rows, columns)
    up_kernel[grid(schedule, columns, tile)](
        hidden_TD, order_R, experts.up, experts.up_bias, h_RG, a_RF, schedule.entries,
        columns, inner, schedule.experts, hidden_TD.stride(0), *experts.up.stride(),
        TOP_K=top_k, HAS_BIAS=experts.up_bias is not None,
        GATED=experts.gated, KEEP=keep, ACTIVATION=experts.activation,
        **_constants(tile, columns, inner, hidden_TD.dtype),
    )  # fmt: skip
    return a_RF, h_RG


def down_gradient(
    dO_RD: Tensor,
    experts: ExpertWeights[Tensor],
    h_RG: Tensor,
    s_R: Tensor,
    partials_PG: Tensor | None,
    dots_BR: Tensor | None,
    schedule: Schedule,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """dh_RG and sa_RF; partials_PG and the first rows of dots_BR are filled when given."""
    _, inner, columns = experts.down.shape
    dh_RG = torch.empty_like(h_RG)
    sa_RF = h_RG.new_empty(h_RG.shape[0], columns)
    stride_e, stride_k, stride_n = experts.down.stride()
    down_gradient_kernel[grid(schedule, columns, tile)](
        dO_RD, experts.down, h_RG, s_R, dh_RG, sa_RF, partials_PG, dots_BR, schedule.entries,
        s_R.numel(), columns, inner, schedule.experts, stride_e, stride_n, stride_k,
        GATED=experts.gated, WRITE_PARTIALS=partials_PG is not None, WRITE_DOTS=dots_BR is not None,
        ACTIVATION=experts.activation, **_constants(tile, columns, inner, dO_RD.dtype),
    )  # fmt: skip
    return dh_RG, sa_RF


def ragged_k(left_RM: Tensor, right_RN: Tensor, schedule: Schedule, tile: Tile) -> Tensor:
    """out_EMN."""
    m, n = left_RM.shape[1], right_RN.shape[1]
    out_EMN = left_RM.new_empty(schedule.experts, m, n)
    tiles = schedule.experts * triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    constants = _constants(tile, n, tile.block_k, left_RM.dtype)
    constants["EVEN"] = constants["EVEN"] and m % tile.block_m == 0
    ragged_k_kernel[(tiles,)](left_RM, right_RN, out_EMN, schedule.offsets_E, schedule.entries, m, n, **constants)
    return out_EMN


def grid(schedule: Schedule, columns: int, tile: Tile) -> tuple[int]:
    """A program for every tile there can be."""
    return (schedule.most_tiles * triton.cdiv(columns, tile.block_n),)


def _constants(tile: Tile, columns: int, inner: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "EVEN": columns % tile.block_n == 0 and inner % tile.block_k == 0,
        "PRECISION": precision_of(dtype),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP_M": tile.group_m,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **OPTIONS,
    }
