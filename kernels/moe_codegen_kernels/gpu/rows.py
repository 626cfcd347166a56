"""Moving and summing rows: gather, combine, and the second halves of the bias and weight gradients.

    gather_rows       x_RD[r] = hidden_TD[order_R[r] // TOP_K]
    gather_gradient   dO_RD[r] = grad_TD[order_R[r] // TOP_K] and s_R[r] = weights[order_R[r]]; in the same pass, per
                      tile of rows, the partial sums of s_r dO_RD[r] (for d(down_bias)) and per row the dots
                      <dO_RD[r], down_bias>
    sum_partials      bias gradient of each expert: the sum of its tiles' partial column sums
    routing_weight_gradient   d(weights)[slot of r]: the sum of row r's partial dots
    zero_unrouted     rows of no expert become 0
    combine           out_TD[t] = sum over k of weights_TK[t, k] * rows_RD[inverse_R[t * TOP_K + k]]
    combine_gradients d_rows_RD[r] = weights[order_R[r]] * grad_TD[order_R[r] // TOP_K], and in the same pass
                      d_weights[order_R[r]] = <grad_TD[order_R[r] // TOP_K], rows_RD[r]>

    order_R, inverse_R, offsets_E, schedule   see routing.py
    partials_PN  float32  partial column sums of each tile of rows; a tile's place is `partial_index`
    dots_BR      float32  partial dots of each row, one for each block of columns

Rows from offsets_E[E] on belong to no expert: within a layer they are not written, and never read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_codegen_kernels.gpu import OPTIONS
from moe_codegen_kernels.gpu.epilogues import partial_index
from moe_codegen_kernels.gpu.routing import Schedule


@triton.jit
def gather_kernel(
    source_ptr, order_ptr, out_ptr, offsets_ptr, N, stride_source, EXPERTS,
    TOP_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows, BLOCK_N columns."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row_R = row_R < tl.load(offsets_ptr + EXPERTS)
    token_R = (tl.load(order_ptr + row_R, mask=is_row_R, other=0) // TOP_K).to(tl.int64)
    mask = is_row_R[:, None] & (column_N < N)[None, :]
    values = tl.load(source_ptr + token_R[:, None] * stride_source + column_N[None, :], mask=mask)
    tl.store(out_ptr + row_R.to(tl.int64)[:, None] * N + column_N[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["R"])
def gather_gradient_kernel(
    grad_ptr, order_ptr, weights_ptr, bias_ptr, schedule_ptr, out_ptr, s_ptr, partials_ptr, dots_ptr,
    R, N, stride_grad, EXPERTS,
    TOP_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, WRITE_PARTIALS: tl.constexpr, WRITE_DOTS: tl.constexpr,
):  # fmt: skip
    """One tile of the schedule, BLOCK_N columns."""
    if tl.program_id(0) >= tl.load(schedule_ptr):
        return
    entry_ptr = schedule_ptr + 1 + EXPERTS + 3 * tl.program_id(0)
    expert = tl.load(entry_ptr)
    row = tl.load(entry_ptr + 1)
    row_M = row + tl.arange(0, BLOCK_M)
    is_row_M = row_M < tl.load(entry_ptr + 2)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    slot_M = tl.load(order_ptr + row_M, mask=is_row_M, other=0).to(tl.int64)
    mask = is_row_M[:, None] & (column_N < N)[None, :]
    address = (slot_M // TOP_K)[:, None] * stride_grad + column_N[None, :]
    dO = tl.load(grad_ptr + address, mask=mask, other=0.0)
    tl.store(out_ptr + row_M.to(tl.int64)[:, None] * N + column_N[None, :], dO, mask=mask)
    s_M = tl.load(weights_ptr + slot_M, mask=is_row_M, other=0.0).to(tl.float32)
    if tl.program_id(1) == 0:
        tl.store(s_ptr + row_M, s_M, mask=is_row_M)
    if WRITE_PARTIALS:
        sums_N = tl.sum(dO.to(tl.float32) * s_M[:, None], axis=0)
        place = partial_index(row, expert, BLOCK_M).to(tl.int64) * N
        tl.store(partials_ptr + place + column_N, sums_N, mask=column_N < N)
    if WRITE_DOTS and HAS_BIAS:
        bias_address = expert.to(tl.int64) * N + column_N
        bias_N = tl.load(bias_ptr + bias_address, mask=column_N < N, other=0.0).to(tl.float32)
        dot_M = tl.sum(dO.to(tl.float32) * bias_N[None, :], axis=1)
        tl.store(dots_ptr + tl.program_id(1).to(tl.int64) * R + row_M, dot_M, mask=is_row_M)


@triton.jit
def sum_partials_kernel(
    partials_ptr, offsets_ptr, out_ptr, N,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One expert, BLOCK_N columns, BLOCK_P partial sums at a time, always in the same order."""
    expert = tl.program_id(0)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(offsets_ptr + expert)
    tiles = (tl.load(offsets_ptr + expert + 1) - row + BLOCK_M - 1) // BLOCK_M
    first = partial_index(row, expert, BLOCK_M)
    total_N = tl.zeros([BLOCK_N], tl.float32)
    for tile in range(0, tiles, BLOCK_P):
        tile_P = tile + tl.arange(0, BLOCK_P)
        mask = (tile_P < tiles)[:, None] & (column_N < N)[None, :]
        address = (first + tile_P).to(tl.int64)[:, None] * N + column_N[None, :]
        total_N += tl.sum(tl.load(partials_ptr + address, mask=mask, other=0.0), axis=0)
    tl.store(out_ptr + expert.to(tl.int64) * N + column_N, total_N, mask=column_N < N)


@triton.jit(do_not_specialize=["R"])
def routing_weight_gradient_kernel(
    dots_ptr, order_ptr, out_ptr, offsets_ptr, R, BLOCKS, EXPERTS, BLOCK_R: tl.constexpr
):
    """BLOCK_R rows; slots of no expert get 0."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row_R = row_R < tl.load(offsets_ptr + EXPERTS)
    total_R = tl.zeros([BLOCK_R], tl.float32)
    for block in range(BLOCKS):
        total_R += tl.load(dots_ptr + tl.cast(block, tl.int64) * R + row_R, mask=is_row_R, other=0.0)
    slot_R = tl.load(order_ptr + row_R, mask=row_R < R, other=0)
    tl.store(out_ptr + slot_R, total_R, mask=row_R < R)


@triton.jit
def combine_kernel(
    rows_ptr, weights_ptr, inverse_ptr, offsets_ptr, out_ptr, N, EXPERTS,
    TOP_K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One token, BLOCK_N columns, summed in float32 in the order of its choices and cast once."""
    token = tl.program_id(0).to(tl.int64)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(offsets_ptr + EXPERTS)
    total_N = tl.zeros([BLOCK_N], tl.float32)
    for choice in tl.static_range(TOP_K):
        row = tl.load(inverse_ptr + token * TOP_K + choice).to(tl.int64)
        mask = column_N < tl.where(row < end, N, 0)
        value_N = tl.load(rows_ptr + row * N + column_N, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHTS:
            value_N *= tl.load(weights_ptr + token * TOP_K + choice).to(tl.float32)
        total_N += value_N
    tl.store(out_ptr + token * N + column_N, total_N, mask=column_N < N)


@triton.jit(do_not_specialize=["R"])
def combine_gradients_kernel(
    grad_ptr, rows_ptr, weights_ptr, order_ptr, offsets_ptr, d_rows_ptr, d_weights_ptr, R, N, EXPERTS,
    TOP_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows, all their columns; rows of no expert get 0."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row_R = row_R < R
    is_routed_R = row_R < tl.load(offsets_ptr + EXPERTS)
    slot_R = tl.load(order_ptr + row_R, mask=is_row_R, other=0).to(tl.int64)
    s_R = tl.load(weights_ptr + slot_R, mask=is_routed_R, other=0.0).to(tl.float32)
    dot_R = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, N, BLOCK_N):
        column_N = first + tl.arange(0, BLOCK_N)
        is_column_N = column_N < N
        mask = is_routed_R[:, None] & is_column_N[None, :]
        address = row_R.to(tl.int64)[:, None] * N + column_N[None, :]
        token = (slot_R // TOP_K)[:, None] * N + column_N[None, :]
        grad = tl.load(grad_ptr + token, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(rows_ptr + address, mask=mask, other=0.0).to(tl.float32)
        tl.store(d_rows_ptr + address, s_R[:, None] * grad, mask=is_row_R[:, None] & is_column_N[None, :])
        dot_R += tl.sum(grad * value, axis=1)
    tl.store(d_weights_ptr + slot_R, dot_R, mask=is_row_R)


@triton.jit(do_not_specialize=["R"])
def zero_unrouted_kernel(rows_ptr, offsets_ptr, R, N, EXPERTS, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """BLOCK_R rows; programs whose rows all have an expert end at once."""
    row_R = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row_R = (row_R >= tl.load(offsets_ptr + EXPERTS)) & (row_R < R)
    if tl.max(is_row_R.to(tl.int32)) == 0:
        return
    zeros = tl.zeros([BLOCK_R, BLOCK_N], rows_ptr.dtype.element_ty)
    for first in range(0, N, BLOCK_N):
        column_N = first + tl.arange(0, BLOCK_N)
        address = row_R.to(tl.int64)[:, None] * N + column_N[None, :]
        tl.store(rows_ptr + address, zeros, mask=is_row_R[:, None] & (column_N < N)[None, :])


def zero_unrouted(rows_RN: Tensor, offsets_E: Tensor) -> None:
    """Zeros, in place, where no expert wrote."""
    rows, columns = rows_RN.shape
    if rows > 0:
        zero_unrouted_kernel[(triton.cdiv(rows, 16),)](
            rows_RN, offsets_E, rows, columns, offsets_E.numel() - 1, BLOCK_R=16, BLOCK_N=256, **OPTIONS
        )


def gather_rows(source_TD: Tensor, order_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    """x_RD, each routed row's token, expert by expert."""
    rows, columns = order_R.numel(), source_TD.shape[1]
    out_RD = source_TD.new_empty(rows, columns)
    if rows > 0:
        gather_kernel[(triton.cdiv(rows, 8), triton.cdiv(columns, 512))](
            source_TD, order_R, out_RD, offsets_E, columns, source_TD.stride(0), offsets_E.numel() - 1,
            TOP_K=top_k, BLOCK_R=8, BLOCK_N=512, **OPTIONS,
        )  # fmt: skip
    return out_RD


GRADIENT_BLOCK_N = 128  # columns a program of gather_gradient covers: one row of dots each


def gather_gradient(
    grad_TD: Tensor,
    order_R: Tensor,
    weights_TK: Tensor,
    bias_ED: Tensor | None,
    schedule: Schedule,
    partials_PD: Tensor | None,
    dots_BR: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """dO_RD and s_R; partials_PD and dots_BR are filled when given."""
    rows, columns = order_R.numel(), grad_TD.shape[1]
    out_RD = grad_TD.new_empty(rows, columns)
    s_R = torch.empty(rows, dtype=torch.float32, device=grad_TD.device)
    gather_gradient_kernel[(schedule.most_tiles, triton.cdiv(columns, GRADIENT_BLOCK_N))](
        grad_TD, order_R, weights_TK, bias_ED, schedule.entries, out_RD, s_R, partials_PD, dots_BR, rows,
        columns, grad_TD.stride(0), schedule.experts, TOP_K=weights_TK.shape[1], BLOCK_M=schedule.block_m,
        BLOCK_N=GRADIENT_BLOCK_N, HAS_BIAS=bias_ED is not None, WRITE_PARTIALS=partials_PD is not None,
        WRITE_DOTS=dots_BR is not None, **OPTIONS,
    )  # fmt: skip
    return out_RD, s_R


def new_partials(schedule: Schedule, columns: int) -> Tensor:
    """Room for the partial column sums of every tile."""
    places = schedule.most_tiles + schedule.experts  # `partial_index` stays below
    return torch.empty(places, columns, dtype=torch.float32, device=schedule.offsets_E.device)


def sum_partials(partials_PN: Tensor, schedule: Schedule, like: Tensor) -> Tensor:
    """The bias gradient, of `like`'s dtype."""
    out_EN = torch.empty_like(like, memory_format=torch.contiguous_format)
    experts, columns = out_EN.shape
    sum_partials_kernel[(experts, triton.cdiv(columns, 128))](
        partials_PN,
        schedule.offsets_E,
        out_EN,
        columns,
        BLOCK_M=schedule.block_m,
        BLOCK_P=32,
        BLOCK_N=128,
        **OPTIONS,
    )
    return out_EN


def routing_weight_gradient(dots_BR: Tensor, order_R: Tensor, offsets_E: Tensor, like: Tensor) -> Tensor:
    """The routing weights' gradient, of `like`'s dtype and shape."""
    out_TK = torch.empty_like(like, memory_format=torch.contiguous_format)
    blocks, rows = dots_BR.shape
    routing_weight_gradient_kernel[(triton.cdiv(rows, 256),)](
        dots_BR,
        order_R,
        out_TK,
        offsets_E,
        rows,
        blocks,
        offsets_E.numel() - 1,
        BLOCK_R=256,
        **OPTIONS,
    )
    return out_TK


def combine(rows_RD: Tensor, weights_TK: Tensor | None, inverse_TK: Tensor, offsets_E: Tensor) -> Tensor:
    """out_TD, each token's rows weighed (by 1 without weights_TK) and summed."""
    (tokens, top_k), columns = inverse_TK.shape, rows_RD.shape[1]
    out_TD = rows_RD.new_empty(tokens, columns)
    if tokens > 0:
        block_n = min(1024, triton.next_power_of_2(columns))
        combine_kernel[(tokens, triton.cdiv(columns, block_n))](
            rows_RD, weights_TK, inverse_TK, offsets_E, out_TD, columns, offsets_E.numel() - 1,
            TOP_K=top_k, HAS_WEIGHTS=weights_TK is not None, BLOCK_N=block_n, **OPTIONS,
        )  # fmt: skip
    return out_TD


def combine_gradients(
    grad_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    """d_rows_RD and d_weights_TK of `combine`."""
    rows, columns = rows_RD.shape
    d_rows_RD, d_weights_TK = torch.empty_like(rows_RD), torch.empty_like(weights_TK)
    if rows > 0:
        combine_gradients_kernel[(triton.cdiv(rows, 4),)](
            grad_TD, rows_RD, weights_TK, order_R, offsets_E, d_rows_RD, d_weights_TK,
            rows, columns, offsets_E.numel() - 1, TOP_K=weights_TK.shape[1], BLOCK_R=4, BLOCK_N=512, **OPTIONS,
        )  # fmt: skip
    return d_rows_RD, d_weights_TK
