"""The grouped GEMMs of pointer.py, persistent and fed by TMA: 16-bit elements, sm_90 and sm_100.

The equations, the schedule and the partial sums are those of pointer.py; what differs is the feeding.

- Each of a fixed number of programs walks over output tiles, so that nothing is launched for tiles that do not
  exist. What a tile's epilogue is hidden behind: the next tile's loads, where `flatten` merges the two loops, or
  another program's products, where two share a processor.
- Rows are contiguous (`gather_rows`), read in boxes of BLOCK_M x BLOCK_K. Rows past an expert's end are the
  next expert's or zero: they only reach rows of the result that are not stored.
- Results and ragged-K operands go through ragged descriptors, whose bounds are an expert's rows: the
  hardware drops stores past the end and reads zeros there, so that no loop carries a mask.

Descriptors are made on the host: one made on the device needs an allocator that autograd's thread does not
have.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor, to_ragged_indices
from triton.tools.tensor_descriptor import TensorDescriptor

from moe_codegen_kernels.gpu import OPTIONS
from moe_codegen_kernels.gpu.epilogues import (
    EPILOGUE_COLUMNS,
    activate,
    bias_of,
    column_parts,
    gradients,
    partial_index,
    ragged_tile,
    swept,
)
from moe_codegen_kernels.gpu.routing import Schedule
from moe_codegen_kernels.gpu.rows import gather_rows
from moe_codegen_kernels.records import ExpertWeights
from moe_codegen_kernels.tiles import Tile


@triton.jit
def accumulate(
    rows_desc, matrices_desc, row, expert, n, K, pair_n,
    PAIR: tl.constexpr, K_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """rows @ matrix^T for one tile; with PAIR also for the columns from `pair_n` on."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    second = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        a = rows_desc.load([row, k])
        if K_INNERMOST:
            b = matrices_desc.load([expert, n, k]).reshape(BLOCK_N, BLOCK_K).T
        else:
            b = matrices_desc.load([expert, k, n]).reshape(BLOCK_K, BLOCK_N)
        acc = tl.dot(a, b, acc)
        if PAIR:
            b = matrices_desc.load([expert, pair_n, k]).reshape(BLOCK_N, BLOCK_K).T
            second = tl.dot(a, b, second)
    return acc, second


@triton.jit
def store_rows(desc, row, end, half, column, values):
    """Store a tile from `row` on, up to the expert's `end`, into a result seen as (R, halves, F).

    The halves keep the gate's last tile from reaching the value's columns. A result of one half is seen the
    same way, because stores of one shape share one buffer: h and a together would not fit beside the
    pipeline.
    """
    c0, c1, c2 = to_ragged_indices(row, end - row, 0)
    box: tl.constexpr = (1, 1, values.shape[0], 1, values.shape[1])
    desc.store([c0, c1, c2, half, column], tl.reshape(values.to(desc.dtype), box))


@triton.jit
def load_half(desc, row, end, half, column, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile of h_RG, seen as in `store_rows`; zeros from the expert's `end` on."""
    c0, c1, c2 = to_ragged_indices(row, end - row, 0)
    return tl.reshape(desc.load([c0, c1, c2, half, column]), [BLOCK_M, BLOCK_N])


@triton.jit
def load_rows(desc, start, rows, row, column, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows start + row and on of an expert that has `rows` rows from `start`; zeros past its end.

    Without the halves' axis: with it, Triton feeds the transposed operand through registers.
    """
    c0, c1, c2 = to_ragged_indices(start, rows, row)
    return tl.reshape(desc.load([c0, c1, c2, column]), [BLOCK_K, BLOCK_N])


@triton.jit
def linear_kernel(
    rows_desc, matrices_desc, bias_ptr, out_desc, schedule_ptr, N, K, EXPERTS,
    HAS_BIAS: tl.constexpr, K_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Tiles of out_RN, every PROGRAMS-th one."""
    num_m_tiles = tl.load(schedule_ptr)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), num_m_tiles * num_n_tiles, PROGRAMS, flatten=FLATTEN):
        expert, row, end, n = ragged_tile(tile, num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M)
        acc, _ = accumulate(
            rows_desc, matrices_desc, row, expert, n * BLOCK_N, K, 0,
            False, K_INNERMOST, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        if HAS_BIAS:
            acc += bias_of(bias_ptr, expert, n * BLOCK_N + tl.arange(0, BLOCK_N), N)
        store_rows(out_desc, row, end, 0, n * BLOCK_N, acc)


@triton.jit
def up_kernel(
    rows_desc, up_desc, bias_ptr, h_desc, a_desc, schedule_ptr, N, K, EXPERTS,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, KEEP: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Tiles of a_RF (N = F), and of h_RG where kept (KEEP)."""
    num_m_tiles = tl.load(schedule_ptr)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    G: tl.constexpr = 2 if GATED else 1
    for tile in tl.range(tl.program_id(0), num_m_tiles * num_n_tiles, PROGRAMS, flatten=FLATTEN):
        expert, row, end, n = ragged_tile(tile, num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M)
        h, value = accumulate(
            rows_desc, up_desc, row, expert, n * BLOCK_N, K, N + n * BLOCK_N,
            GATED, True, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        column_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
        if HAS_BIAS:
            h += bias_of(bias_ptr, G * expert, column_N, N)
        if KEEP:
            store_rows(h_desc, row, end, 0, n * BLOCK_N, h)
        a = activate(h, ACTIVATION)
        if GATED:
            if HAS_BIAS:
                value += bias_of(bias_ptr, G * expert + 1, column_N, N)
            if KEEP:
                store_rows(h_desc, row, end, 1, n * BLOCK_N, value)
            a *= value
        store_rows(a_desc, row, end, 0, n * BLOCK_N, a)


@triton.jit
def gradient_columns(
    dA, s, row, end, column, h_desc, dh_desc, sa_desc, partials_ptr, N,
    GATED: tl.constexpr, WRITE_PARTIALS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The columns of dh_RG and sa_RF that dA covers, from `column` on; returns each row's <dA, a>."""
    BLOCK_M: tl.constexpr = dA.shape[0]
    BLOCK_N: tl.constexpr = dA.shape[1]
    h = load_half(h_desc, row, end, 0, column, BLOCK_M, BLOCK_N)
    h = h.to(tl.float32) + 0.0 * dA  # in dA's layout: else Triton computes a once for dh and once more for sa
    value = load_half(h_desc, row, end, 1, column, BLOCK_M, BLOCK_N).to(tl.float32) if GATED else None
    dh, d_value, sa, dots = gradients(dA, s, h, value, GATED, ACTIVATION)
    store_rows(dh_desc, row, end, 0, column, dh)
    store_rows(sa_desc, row, end, 0, column, sa)
    if GATED:
        store_rows(dh_desc, row, end, 1, column, d_value)
    if WRITE_PARTIALS:
        column_N = column + tl.arange(0, BLOCK_N)
        tl.store(partials_ptr + column_N, tl.sum(dh, axis=0), mask=column_N < N)
        if GATED:
            tl.store(partials_ptr + N + column_N, tl.sum(d_value, axis=0), mask=column_N < N)
    return tl.sum(dots, axis=1)


@triton.jit(do_not_specialize=["R"])
def down_gradient_kernel(
    rows_desc, down_desc, h_desc, s_ptr, dh_desc, sa_desc, partials_ptr, dots_ptr,
    schedule_ptr, R, N, K, EXPERTS,
    GATED: tl.constexpr, WRITE_PARTIALS: tl.constexpr, WRITE_DOTS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """Tiles of dh_RG and sa_RF (N = F, K = D), with their partial sums."""
    num_m_tiles = tl.load(schedule_ptr)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    G: tl.constexpr = 2 if GATED else 1
    for tile in tl.range(tl.program_id(0), num_m_tiles * num_n_tiles, PROGRAMS, flatten=FLATTEN):
        expert, row, end, n = ragged_tile(tile, num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M)
        dA, _ = accumulate(
            rows_desc, down_desc, row, expert, n * BLOCK_N, K, 0, False, False, BLOCK_M, BLOCK_N, BLOCK_K
        )
        row_M = row + tl.arange(0, BLOCK_M)
        is_row_M = row_M < end
        dA = tl.where(is_row_M[:, None], dA, 0.0)  # keeps the next expert's rows out of the sums
        s = tl.load(s_ptr + row_M, mask=is_row_M, other=0.0)[:, None]
        place = partial_index(row, expert, BLOCK_M).to(tl.int64) * (G * N)
        sums_ptr = partials_ptr + place if WRITE_PARTIALS else None
        parts = column_parts(dA)
        dots_M = tl.zeros([BLOCK_M], tl.float32)
        for part in tl.static_range(len(parts)):
            dots_M += gradient_columns(
                parts[part], s, row, end, n * BLOCK_N + part * EPILOGUE_COLUMNS,
                h_desc, dh_desc, sa_desc, sums_ptr, N, GATED, WRITE_PARTIALS, ACTIVATION,
            )  # fmt: skip
        if WRITE_DOTS:
            tl.store(dots_ptr + n.to(tl.int64) * R + row_M, dots_M, mask=is_row_M)


@triton.jit
def ragged_k_kernel(
    left_desc, right_desc, out_desc, offsets_ptr, schedule_ptr, M, N, EXPERTS,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Tiles of out_EMN, experts by falling row count; an expert without rows gets zeros."""
    num_m_tiles = tl.cdiv(M, BLOCK_M)
    num_n_tiles = tl.cdiv(N, BLOCK_N)
    tiles = num_m_tiles * num_n_tiles
    for step in tl.range(tl.program_id(0), EXPERTS * tiles, PROGRAMS):
        expert = tl.load(schedule_ptr + 1 + step // tiles)
        start = tl.load(offsets_ptr + expert)
        rows = tl.load(offsets_ptr + expert + 1) - start
        m_tile, n_tile = swept(step % tiles, num_m_tiles, num_n_tiles, GROUP_M)
        m, n = m_tile * BLOCK_M, n_tile * BLOCK_N
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for row in range(0, rows, BLOCK_K):
            left = load_rows(left_desc, start, rows, row, m, BLOCK_K, BLOCK_M)
            right = load_rows(right_desc, start, rows, row, n, BLOCK_K, BLOCK_N)
            acc = tl.dot(left.T, right, acc)
        out_desc.store([expert, m, n], acc.to(out_desc.dtype).reshape(1, BLOCK_M, BLOCK_N))


def linear(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, schedule: Schedule, tile: Tile) -> Tensor:
    """out_RN; matrices may be transposed views."""
    _, columns, inner = matrices_ENK.shape
    out_RN = rows_RK.new_empty(rows_RK.shape[0], columns)
    tiles = schedule.most_tiles * triton.cdiv(columns, tile.block_n)
    k_innermost = matrices_ENK.stride(2) == 1
    linear_kernel[_grid(schedule, tiles, tile)](
        _rows_descriptor(rows_RK, tile), _matrices_descriptor(matrices_ENK, k_innermost, tile), bias_EN,
        _ragged_descriptor(out_RN, 1, tile.block_m, tile.block_n), schedule.entries,
        columns, inner, schedule.experts,
        HAS_BIAS=bias_EN is not None, K_INNERMOST=k_innermost, FLATTEN=tile.flatten, **_constants(schedule, tile),
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
    """a_RF and h_RG (empty unless `keep`); each row's token is gathered first."""
    rows_RD = gather_rows(hidden_TD, order_R, schedule.offsets_E, top_k)
    _, grown, inner = experts.up.shape
    halves = 2 if experts.gated else 1
    rows, columns = rows_RD.shape[0], grown // halves
    h_RG = rows_RD.new_empty((rows, grown) if keep else (0,))
    a_RF = rows_RD.new_empty(rows, columns)
    tiles = schedule.most_tiles * triton.cdiv(columns, tile.block_n)
    up_kernel[_grid(schedule, tiles, tile)](
        _rows_descriptor(rows_RD, tile), _matrices_descriptor(experts.up, True, tile), experts.up_bias,
        _ragged_descriptor(h_RG, halves, tile.block_m, tile.block_n) if keep else None,
        _ragged_descriptor(a_RF, 1, tile.block_m, tile.block_n), schedule.entries,
        columns, inner, schedule.experts,
        HAS_BIAS=experts.up_bias is not None, GATED=experts.gated, KEEP=keep, ACTIVATION=experts.activation,
        FLATTEN=tile.flatten, **_constants(schedule, tile),
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
    halves = 2 if experts.gated else 1
    dh_RG = torch.empty_like(h_RG)
    sa_RF = h_RG.new_empty(h_RG.shape[0], columns)
    tiles = schedule.most_tiles * triton.cdiv(columns, tile.block_n)
    box = (tile.block_m, min(tile.block_n, EPILOGUE_COLUMNS.value))
    down_gradient_kernel[_grid(schedule, tiles, tile)](
        _rows_descriptor(dO_RD, tile), _matrices_descriptor(experts.down.mT, False, tile),
        _ragged_descriptor(h_RG, halves, *box), s_R, _ragged_descriptor(dh_RG, halves, *box),
        _ragged_descriptor(sa_RF, 1, *box), partials_PG, dots_BR,
        schedule.entries, s_R.numel(), columns, inner, schedule.experts,
        GATED=experts.gated, WRITE_PARTIALS=partials_PG is not None, WRITE_DOTS=dots_BR is not None,
        ACTIVATION=experts.activation, FLATTEN=tile.flatten, **_constants(schedule, tile),
    )  # fmt: skip
    return dh_RG, sa_RF


def ragged_k(left_RM: Tensor, right_RN: Tensor, schedule: Schedule, tile: Tile) -> Tensor:
    """out_EMN."""
    m, n = left_RM.shape[1], right_RN.shape[1]
    out_EMN = left_RM.new_empty(schedule.experts, m, n)
    tiles = schedule.experts * triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    ragged_k_kernel[_grid(schedule, tiles, tile)](
        create_ragged_descriptor(left_RM, [tile.block_k, tile.block_m]),
        create_ragged_descriptor(right_RN, [tile.block_k, tile.block_n]),
        TensorDescriptor.from_tensor(out_EMN, [1, tile.block_m, tile.block_n]),
        schedule.offsets_E, schedule.entries, m, n, schedule.experts, **_constants(schedule, tile),
    )  # fmt: skip
    return out_EMN


def fits(*tensors: Tensor) -> bool:
    """Whether the hardware can read and write these: 16-bit elements, every row a multiple of 16 bytes."""
    strides = [sorted(x.stride()) for x in tensors]
    return all(
        x.element_size() == 2 and x.data_ptr() % 16 == 0 and first == 1 and all(stride % 8 == 0 for stride in others)
        for x, (first, *others) in zip(tensors, strides, strict=True)
    )


def _grid(schedule: Schedule, tiles: int, tile: Tile) -> tuple[int]:
    """As many programs as run at once; fewer tiles need fewer, and then each program takes one."""
    return (min(schedule.processors * tile.programs, tiles),)


def _rows_descriptor(rows_RK: Tensor, tile: Tile) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(rows_RK, [tile.block_m, tile.block_k])


def _matrices_descriptor(matrices_ENK: Tensor, k_innermost: bool, tile: Tile) -> TensorDescriptor:
    if k_innermost:
        return TensorDescriptor.from_tensor(matrices_ENK, [1, tile.block_n, tile.block_k])
    return TensorDescriptor.from_tensor(matrices_ENK.mT, [1, tile.block_k, tile.block_n])


def _ragged_descriptor(rows_RN: Tensor, halves: int, block_rows: int, block_n: int) -> TensorDescriptor:
    """Rows as (R, halves, F), bounded by an expert's rows: see `store_rows`."""
    view = rows_RN.view(rows_RN.shape[0], halves, rows_RN.shape[1] // halves)
    return create_ragged_descriptor(view, [block_rows, 1, block_n])


def _constants(schedule: Schedule, tile: Tile) -> dict[str, Any]:
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP_M": tile.group_m,
        "PROGRAMS": schedule.processors * tile.programs,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **OPTIONS,
    }
