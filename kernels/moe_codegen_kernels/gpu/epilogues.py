"""What the GEMM kernels share: activations and sums in float32, and which rows and columns a program owns."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def sigmoid_and_rest(x):
    """sigmoid(x) and 1 - sigmoid(x), each to full relative precision; the clamp keeps inf * 0 away."""
    e = tl.exp(tl.minimum(-x, 80.0))
    s = 1.0 / (1.0 + e)
    return s, e * s


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """f(x) in float32. Tanh-GELU is x * sigmoid(2u): 1 + tanh(u) = 2 sigmoid(2u), one exponential."""
    if ACTIVATION == "gelu_tanh":
        f = x * sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    elif ACTIVATION == "gelu":
        f = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "silu":
        f = x * sigmoid(x)
    else:
        f = tl.maximum(x, 0.0)
    return f


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr):
    """f(x), f'(x) in float32, sharing the exponential."""
    if ACTIVATION == "gelu_tanh":
        s, rest = sigmoid_and_rest(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
        f = x * s
        slope = s + f * rest * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        f = x * cdf
        slope = cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "silu":
        s, rest = sigmoid_and_rest(x)
        f = x * s
        slope = s + f * rest
    else:
        f = tl.maximum(x, 0.0)
        slope = tl.where(x > 0.0, 1.0, 0.0)
    return f, slope


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
def split_columns(tile):
    """The left and the right half of a tile's columns: an epilogue that takes them in turn holds half the registers."""
    M: tl.constexpr = tile.shape[0]
    N: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, (M, 2, N // 2)), (0, 2, 1)))


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
