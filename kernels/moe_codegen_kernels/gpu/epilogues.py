"""What the GEMM kernels share: activations, gradients and sums in float32, and the rows and columns of a program."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
GELU_SCALE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
GELU_CUBE = tl.constexpr(0.044715)
EPILOGUE_COLUMNS = tl.constexpr(32)  # that the epilogue of `down_gradient` holds at once: more spill


@triton.jit
def sigmoid_exponent(x, square, ACTIVATION: tl.constexpr):
    """z, for which f(x) = x / (1 + 2^z): SiLU, and tanh-GELU since 1 + tanh(u) = 2 sigmoid(2u).

    A power of 2 takes four instructions less than one of e.
    """
    if ACTIVATION == "gelu_tanh":
        z = x * (-LOG2_E * GELU_SCALE - LOG2_E * GELU_SCALE * GELU_CUBE * square)
    else:
        z = -LOG2_E * x
    return z


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """f(x) in float32."""
    if ACTIVATION == "gelu":
        f = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "relu":
        f = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        f = x / (1.0 + tl.exp2(sigmoid_exponent(x, x * x, ACTIVATION)))
    return f


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr):
    """f(x), f'(x) in float32, sharing the exponential.

    f = x s with s = 1 / (1 + e), e = 2^z, has f' = s - f (1 - s) ln 2 dz/dx; 1 - s = e s keeps full relative precision,
    and the bound on z keeps inf * 0 away.
    """
    if ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        f = x * cdf
        slope = cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "relu":
        f = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        slope = tl.where(x > 0.0, 1.0, 0.0)
    else:
        square = x * x
        e = tl.exp2(tl.minimum(sigmoid_exponent(x, square, ACTIVATION), 115.0))
        s = 1.0 / (1.0 + e)
        f = x * s
        slope = f * (e * s)
        if ACTIVATION == "gelu_tanh":
            slope *= GELU_SCALE + 3.0 * GELU_SCALE * GELU_CUBE * square
        slope += s
    return f, slope


@triton.jit
def gradients(dA, s, h, value, GATED: tl.constexpr, ACTIVATION: tl.constexpr):
    """dh, d_value, s a and the terms of <dA, a>, from dA = dO @ down and rows of routing weight s.

    a = f(h) and dh = s dA f'(h); gated, a = f(h) * value, dh = s dA f'(h) * value and d_value = s dA f(h).
    """
    a, slope = activate_with_slope(h, ACTIVATION)
    s_dA = s * dA
    d_value = s_dA * a
    if GATED:
        a *= value
        slope *= value
    return s_dA * slope, d_value, s * a, dA * a


@triton.jit
def add_product(acc, a, b, PRECISION: tl.constexpr):
    """acc + a @ b. Exact float32 sums a step's terms apart: one chain over all of K errs several times as much."""
    if a.dtype == tl.float32 and PRECISION == "ieee":
        # The last argument does nothing here but keep Triton from making it one chain again.
        acc += tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=1)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def column_parts(tile):
    """A tile's columns in parts of EPILOGUE_COLUMNS at most, from left to right, for an epilogue to take in turn."""
    M: tl.constexpr = tile.shape[0]
    N: tl.constexpr = tile.shape[1]
    if N <= EPILOGUE_COLUMNS:
        parts = (tile,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(tile, (M, 2, N // 2)), (0, 2, 1)))
        parts = column_parts(left) + column_parts(right)
    return parts


@triton.jit
def bias_of(bias_ptr, row, column_N, N):
    """The tile's columns of one row of a bias (E, N), or (2E, N) when gated: (1, BLOCK_N) in float32."""
    bias_N = tl.load(bias_ptr + row.to(tl.int64) * N + column_N, mask=column_N < N, other=0.0)
    return bias_N.to(tl.float32)[None, :]


@triton.jit
def swept(tile, num_m_tiles, num_n_tiles, GROUP_M: tl.constexpr):
    """Row and column block of tile number `tile`: GROUP_M row blocks sweep the columns together.

    So the rows and the weights they read stay in L2.
    """
    group = tile // (GROUP_M * num_n_tiles)
    group_m = tl.minimum(num_m_tiles - group * GROUP_M, GROUP_M)
    inside = tile - group * GROUP_M * num_n_tiles
    return group * GROUP_M + inside % group_m, inside // group_m


@triton.jit
def ragged_tile(tile, num_m_tiles, num_n_tiles, schedule_ptr, EXPERTS, GROUP_M: tl.constexpr):
    """expert, first row, end of the expert's rows, column block of output tile number `tile`."""
    entry, n = swept(tile, num_m_tiles, num_n_tiles, GROUP_M)
    entry_ptr = schedule_ptr + 1 + EXPERTS + 3 * entry
    expert = tl.load(entry_ptr)
    row = tl.load(entry_ptr + 1)
    end = tl.load(entry_ptr + 2)
    return expert, row, end, n


@triton.jit
def partial_index(row, expert, BLOCK_M: tl.constexpr):
    """Where the tile that starts at `row` of `expert` keeps its partial sums: unique, below R // BLOCK_M + E.

    An expert of c rows that starts at row o uses o // BLOCK_M + expert and on, ceil(c / BLOCK_M) of them,
    and the next expert starts at (o + c) // BLOCK_M + expert + 1, which is no smaller.
    """
    return row // BLOCK_M + expert
