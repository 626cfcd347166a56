"""Few tokens (T <= 64, or 16 of float32), no gradient: the weights of each touched expert cross the memory bus once.

    a_ETF[e, t] = f(up[e] @ x_t + up_bias[e])                     for every token t, if any token chose e
    y_SETD[s, e, t] = down[e][:, part s] @ a_ETF[e, t, part s]    (S parts of F; part 0 adds down_bias)
    out_TD[t] = sum over k, then s, of weights_TK[t, k] * y_SETD[s, expert of (t, k), t]

Time goes into reading weights, so a touched expert computes all T tokens, chosen or not: that needs no
plan, no gather and no sort. Programs of an untouched expert end at once. With fewer routed rows than
experts, programs stand for rows instead of experts, and the first row of each expert works. y and the sum
over parts stay float32.

T tokens (BLOCK_T: power of two >= 16), E experts, K top-k, D model, F expert hidden, S parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_codegen_kernels.gpu.epilogues import activate
from moe_codegen_kernels.tiles import SHARED_MEMORY_LIMIT, Gpu, precision_of

MOST_TOKENS = {2: 64, 4: 16}  # by element size: 32-bit products run on the plain cores, and spill beyond
MOST_ROWS = 1024  # ids each program reads to learn whether its expert is touched


@triton.jit
def touched_expert(ids_ptr, R, EXPERTS, BY_ROW: tl.constexpr, BLOCK_R: tl.constexpr):
    """This program's expert, and whether it has work: a token chose it, and no earlier program has it."""
    index = tl.program_id(0)
    row_R = tl.arange(0, BLOCK_R)
    ids_R = tl.load(ids_ptr + row_R, mask=row_R < R, other=EXPERTS).to(tl.int32)
    if BY_ROW:
        expert = tl.load(ids_ptr + index).to(tl.int32)
        is_work = (tl.sum(((ids_R == expert) & (row_R < index)).to(tl.int32)) == 0) & (expert < EXPERTS)
    else:
        expert = index
        is_work = tl.sum((ids_R == expert).to(tl.int32)) > 0
    return expert.to(tl.int64), is_work


@triton.jit(do_not_specialize=["T", "R"])
def decode_up_kernel(
    x_ptr, ids_ptr, up_ptr, bias_ptr, a_ptr, T, R, N, K, EXPERTS, stride_x, stride_e, stride_n,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, BY_ROW: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of a_ETF (N = F, K = D) of one expert."""
    expert, is_work = touched_expert(ids_ptr, R, EXPERTS, BY_ROW, BLOCK_R)
    if not is_work:
        return
    token_T = tl.arange(0, BLOCK_T)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_K = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token_T[:, None] * stride_x + k_K[None, :]
    up_ptrs = up_ptr + expert * stride_e + column_N.to(tl.int64)[None, :] * stride_n + k_K[:, None]
    G: tl.constexpr = 2 if GATED else 1
    h = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    value = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        is_k_K = k + k_K < K
        x = tl.load(x_ptrs, mask=(token_T < T)[:, None] & is_k_K[None, :], other=0.0)
        mask = is_k_K[:, None] & (column_N < N)[None, :]
        h = tl.dot(x, tl.load(up_ptrs, mask=mask, other=0.0), h, input_precision=PRECISION)
        if GATED:
            second = tl.load(up_ptrs + tl.cast(N, tl.int64) * stride_n, mask=mask, other=0.0)
            value = tl.dot(x, second, value, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        up_ptrs += BLOCK_K
    bias_ptrs = bias_ptr + expert * (G * N) + column_N if HAS_BIAS else None
    if HAS_BIAS:
        h += tl.load(bias_ptrs, mask=column_N < N, other=0.0).to(tl.float32)[None, :]
    a = activate(h, ACTIVATION)
    if GATED:
        if HAS_BIAS:
            value += tl.load(bias_ptrs + N, mask=column_N < N, other=0.0).to(tl.float32)[None, :]
        a *= value
    a_ptrs = a_ptr + (expert * T + token_T[:, None]) * N + column_N[None, :]
    tl.store(a_ptrs, a, mask=(token_T < T)[:, None] & (column_N < N)[None, :])


@triton.jit(do_not_specialize=["T", "R"])
def decode_down_kernel(
    a_ptr, ids_ptr, down_ptr, bias_ptr, y_ptr, T, R, N, K, EXPERTS, stride_e, stride_n,
    HAS_BIAS: tl.constexpr, BY_ROW: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of y_SETD (N = D, K = F) of one expert and one of PARTS parts of K."""
    expert, is_work = touched_expert(ids_ptr, R, EXPERTS, BY_ROW, BLOCK_R)
    if not is_work:
        return
    part = tl.program_id(2)
    token_T = tl.arange(0, BLOCK_T)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    length = tl.cdiv(tl.cdiv(K, BLOCK_K), PARTS) * BLOCK_K
    first = part * length
    k_K = first + tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (expert * T + token_T[:, None]) * K + k_K[None, :]
    down_ptrs = down_ptr + expert * stride_e + column_N.to(tl.int64)[None, :] * stride_n + k_K[:, None]
    y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in range(0, length, BLOCK_K):
        is_k_K = k + k_K < K
        a = tl.load(a_ptrs, mask=(token_T < T)[:, None] & is_k_K[None, :], other=0.0)
        mask = is_k_K[:, None] & (column_N < N)[None, :]
        y = tl.dot(a, tl.load(down_ptrs, mask=mask, other=0.0), y, input_precision=PRECISION)
        a_ptrs += BLOCK_K
        down_ptrs += BLOCK_K
    if HAS_BIAS:
        bias_ptrs = bias_ptr + expert * N + column_N
        bias_N = tl.load(bias_ptrs, mask=column_N < tl.where(part == 0, N, 0), other=0.0)
        y += bias_N.to(tl.float32)[None, :]
    y_ptrs = y_ptr + ((part * EXPERTS + expert) * T + token_T[:, None]) * N + column_N[None, :]
    tl.store(y_ptrs, y, mask=(token_T < T)[:, None] & (column_N < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def decode_combine_kernel(
    y_ptr, ids_ptr, weights_ptr, out_ptr, T, N, EXPERTS,
    TOP_K: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of one token."""
    token = tl.program_id(0)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_N = tl.zeros([BLOCK_N], tl.float32)
    for choice in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + token * TOP_K + choice).to(tl.int64)
        mask = column_N < tl.where(expert < EXPERTS, N, 0)
        y_N = tl.zeros([BLOCK_N], tl.float32)
        for part in tl.static_range(PARTS):
            y_N += tl.load(y_ptr + ((part * EXPERTS + expert) * T + token) * N + column_N, mask=mask, other=0.0)
        total_N += tl.load(weights_ptr + token * TOP_K + choice).to(tl.float32) * y_N
    tl.store(out_ptr + token.to(tl.int64) * N + column_N, total_N, mask=column_N < N)


BLOCK_N = 32  # rows of a weight matrix a program reads: few, so that every processor has several programs
BYTES_K = 256  # of each of those rows in one step
PARTS = 4  # of F in the second product, whose N = D alone gives too few programs
STAGES = 4


def serves(tokens: int, rows: int, element_bytes: int) -> bool:
    """Whether this path takes a call without gradients."""
    return 0 < tokens <= MOST_TOKENS.get(element_bytes, 0) and rows <= MOST_ROWS


def expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
    gpu: Gpu,
) -> Tensor:
    """out_TD, in three launches."""
    (tokens, top_k), (experts, model, hidden) = expert_ids_TK.shape, down.shape
    rows = tokens * top_k
    programs = min(rows, experts)
    shared = {
        "BY_ROW": rows < experts,
        "PRECISION": precision_of(hidden_TD.dtype),
        "BLOCK_R": triton.next_power_of_2(rows),
        "BLOCK_T": max(16, triton.next_power_of_2(tokens)),
        "BLOCK_N": BLOCK_N,
        "BLOCK_K": BYTES_K // hidden_TD.element_size(),
    }
    a_ETF = hidden_TD.new_empty(experts, tokens, hidden)
    decode_up_kernel[(programs, triton.cdiv(hidden, BLOCK_N))](
        hidden_TD, expert_ids_TK, up, up_bias, a_ETF, tokens, rows, hidden, model, experts,
        hidden_TD.stride(0), up.stride(0), up.stride(1),
        HAS_BIAS=up_bias is not None, GATED=gated, ACTIVATION=activation,
        num_stages=_stages(shared["BLOCK_T"] + (2 if gated else 1) * BLOCK_N, gpu), **shared,
    )  # fmt: skip
    y_SETD = torch.empty(PARTS, experts, tokens, model, dtype=torch.float32, device=hidden_TD.device)
    decode_down_kernel[(programs, triton.cdiv(model, BLOCK_N), PARTS)](
        a_ETF, expert_ids_TK, down, down_bias, y_SETD, tokens, rows, model, hidden, experts,
        down.stride(0), down.stride(1),
        HAS_BIAS=down_bias is not None, PARTS=PARTS,
        num_stages=_stages(shared["BLOCK_T"] + BLOCK_N, gpu), **shared,
    )  # fmt: skip
    out_TD = torch.empty_like(hidden_TD)
    decode_combine_kernel[(tokens, triton.cdiv(model, 256))](
        y_SETD, expert_ids_TK, weights_TK, out_TD, tokens, model, experts,
        TOP_K=top_k, PARTS=PARTS, BLOCK_N=256,
    )  # fmt: skip
    return out_TD


def _stages(rows: int, gpu: Gpu) -> int:
    """As many loads ahead as fit: Triton keeps one buffer less than it has stages, each of `rows` x BYTES_K."""
    return min(STAGES, SHARED_MEMORY_LIMIT[gpu.architecture] // (rows * BYTES_K) + 1)
