"""Few tokens (T <= 64, or 16 of float32), no gradient: the weights of each touched expert cross the memory bus once.

    a_RF[slot] = f(up[e] @ x_t + up_bias[e])                for each slot (t, k), e its expert
    y_SRD[s, slot] = down[e][:, part s] @ a_RF[slot, part s]    (S parts of F; part 0 adds down_bias)
    out_TD[t] = sum over k, then s, of weights_TK[t, k] * y_SRD[s, slot (t, k)]

Time goes into reading weights, so a program keeps all T tokens in its tile, each at its own place: that needs no
plan, no gather and no sort. Of those that did not choose its expert it reads and writes nothing. Programs of an
untouched expert end at once. With fewer routed rows than experts, programs stand for rows instead of experts, and
the first row of each expert works. y and the sum over parts stay float32.

T tokens (BLOCK_T: power of two >= 16), E experts, K top-k (BLOCK_C: power of two >= K), R = T*K slots, D model,
F expert hidden, S parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_codegen_kernels.gpu import OPTIONS
from moe_codegen_kernels.gpu.epilogues import activate, add_product, bias_of
from moe_codegen_kernels.records import ExpertWeights
from moe_codegen_kernels.tiles import SHARED_MEMORY_LIMIT, Gpu, precision_of

MOST_TOKENS = {2: 64, 4: 16}  # by element size: 32-bit products run on the plain cores, and spill beyond
MOST_IDS = 1024  # that a program reads to learn which tokens chose its expert


@triton.jit
def first_choice(ids_ptr, token_T, T, expert, TOP_K: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of each token the first choice that is `expert`; BLOCK_C where none is. A token may name an expert twice."""
    choice_C = tl.arange(0, BLOCK_C)
    is_id = (token_T < T)[:, None] & (choice_C < TOP_K)[None, :]
    ids = tl.load(ids_ptr + token_T[:, None] * TOP_K + choice_C[None, :], mask=is_id, other=-1)
    return tl.min(tl.where(ids == expert, choice_C[None, :], BLOCK_C), axis=1)


@triton.jit
def touched_expert(
    ids_ptr, T, EXPERTS, BY_ROW: tl.constexpr, TOP_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr
):
    """This program's expert; which tokens chose it, and each one's slot; whether the expert is this program's work."""
    token_T = tl.arange(0, BLOCK_T)
    expert = tl.program_id(0).to(tl.int64)
    if BY_ROW:
        expert = tl.load(ids_ptr + tl.program_id(0)).to(tl.int64)
    choice_T = first_choice(ids_ptr, token_T, T, expert, TOP_K, BLOCK_C)
    is_row_T = choice_T < BLOCK_C
    slot_T = token_T * TOP_K + choice_T
    is_work = expert < EXPERTS
    if BY_ROW:
        is_work = is_work & (tl.min(tl.where(is_row_T, slot_T, BLOCK_T * TOP_K)) == tl.program_id(0))
    else:
        is_work = tl.max(is_row_T.to(tl.int32)) > 0
    return expert, token_T, is_row_T, slot_T, is_work


@triton.jit(do_not_specialize=["T"])
def decode_up_kernel(
    x_ptr, ids_ptr, up_ptr, bias_ptr, a_ptr, T, N, K, EXPERTS, stride_x, stride_e, stride_n,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, BY_ROW: tl.constexpr,
    TOP_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of a_RF (N = F, K = D) for one expert's slots."""
    expert, token_T, is_row_T, slot_T, is_work = touched_expert(ids_ptr, T, EXPERTS, BY_ROW, TOP_K, BLOCK_C, BLOCK_T)
    if not is_work:
        return
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k_K = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token_T[:, None] * stride_x + k_K[None, :]
    up_ptrs = up_ptr + expert * stride_e + column_N.to(tl.int64)[None, :] * stride_n + k_K[:, None]
    G: tl.constexpr = 2 if GATED else 1
    h = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    value = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        is_k_K = k + k_K < K
        x = tl.load(x_ptrs, mask=is_row_T[:, None] & is_k_K[None, :], other=0.0)
        mask = is_k_K[:, None] & (column_N < N)[None, :]
        h = add_product(h, x, tl.load(up_ptrs, mask=mask, other=0.0), PRECISION)
        if GATED:
            second = tl.load(up_ptrs + tl.cast(N, tl.int64) * stride_n, mask=mask, other=0.0)
            value = add_product(value, x, second, PRECISION)
        x_ptrs += BLOCK_K
        up_ptrs += BLOCK_K
    if HAS_BIAS:
        h += bias_of(bias_ptr, G * expert, column_N, N)
    a = activate(h, ACTIVATION)
    if GATED:
        if HAS_BIAS:
            value += bias_of(bias_ptr, G * expert + 1, column_N, N)
        a *= value
    tl.store(a_ptr + slot_T[:, None] * N + column_N[None, :], a, mask=is_row_T[:, None] & (column_N < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def decode_down_kernel(
    a_ptr, ids_ptr, down_ptr, bias_ptr, y_ptr, T, N, K, EXPERTS, stride_e, stride_n,
    HAS_BIAS: tl.constexpr, BY_ROW: tl.constexpr, PARTS: tl.constexpr,
    TOP_K: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of y_SRD (N = D, K = F) for one expert's slots and one of PARTS parts of K."""
    expert, _, is_row_T, slot_T, is_work = touched_expert(ids_ptr, T, EXPERTS, BY_ROW, TOP_K, BLOCK_C, BLOCK_T)
    if not is_work:
        return
    part = tl.program_id(2)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    length = tl.cdiv(tl.cdiv(K, BLOCK_K), PARTS) * BLOCK_K
    first = part * length
    k_K = first + tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + slot_T[:, None] * K + k_K[None, :]
    down_ptrs = down_ptr + expert * stride_e + column_N.to(tl.int64)[None, :] * stride_n + k_K[:, None]
    y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in range(0, length, BLOCK_K):
        is_k_K = k + k_K < K
        a = tl.load(a_ptrs, mask=is_row_T[:, None] & is_k_K[None, :], other=0.0)
        mask = is_k_K[:, None] & (column_N < N)[None, :]
        y = add_product(y, a, tl.load(down_ptrs, mask=mask, other=0.0), PRECISION)
        a_ptrs += BLOCK_K
        down_ptrs += BLOCK_K
    if HAS_BIAS:
        y += tl.where(part == 0, bias_of(bias_ptr, expert, column_N, N), 0.0)
    y_ptrs = y_ptr + (part * T * TOP_K + slot_T)[:, None] * N + column_N[None, :]
    tl.store(y_ptrs, y, mask=is_row_T[:, None] & (column_N < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def decode_combine_kernel(
    y_ptr, ids_ptr, weights_ptr, out_ptr, T, N, EXPERTS,
    TOP_K: tl.constexpr, PARTS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of one token."""
    token = tl.program_id(0)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total_N = tl.zeros([BLOCK_N], tl.float32)
    for choice in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + token * TOP_K + choice)
        slot = token * TOP_K + tl.max(first_choice(ids_ptr, token + tl.arange(0, 1), T, expert, TOP_K, BLOCK_C))
        mask = column_N < tl.where(expert < EXPERTS, N, 0)
        y_N = tl.zeros([BLOCK_N], tl.float32)
        for part in tl.static_range(PARTS):
            y_N += tl.load(y_ptr + (part * T * TOP_K + slot) * N + column_N, mask=mask, other=0.0)
        total_N += tl.load(weights_ptr + token * TOP_K + choice).to(tl.float32) * y_N
    tl.store(out_ptr + token * N + column_N, total_N, mask=column_N < N)


BLOCK_N = 32  # rows of a weight matrix a program reads: few, so that every processor has several programs
BYTES_K = {2: 256, 4: 128}  # of each of those rows in one step, by element size: plain cores want short steps
STAGES = 4
PROGRAMS_A_PROCESSOR = 8  # are enough to keep memory busy
MOST_PARTS = 4  # of F in the second product, whose N = D alone may give fewer


def serves(tokens: int, top_k: int, element_bytes: int) -> bool:
    """Whether this path takes a call without gradients."""
    return 0 < tokens <= MOST_TOKENS.get(element_bytes, 0) and tokens * triton.next_power_of_2(top_k) <= MOST_IDS


def expert_ffn(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights[Tensor], gpu: Gpu
) -> Tensor:
    """out_TD, in three launches."""
    (tokens, top_k), (count, model, hidden) = expert_ids_TK.shape, experts.down.shape
    rows = tokens * top_k
    programs, columns = min(rows, count), triton.cdiv(model, BLOCK_N)
    parts = 1
    while parts < MOST_PARTS and programs * columns * parts < PROGRAMS_A_PROCESSOR * gpu.processors:
        parts *= 2
    bytes_k = BYTES_K[hidden_TD.element_size()]
    common = {"TOP_K": top_k, "BLOCK_C": triton.next_power_of_2(top_k), **OPTIONS}
    gemm = common | {
        "BY_ROW": rows < count,
        "PRECISION": precision_of(hidden_TD.dtype),
        "BLOCK_T": max(16, triton.next_power_of_2(tokens)),
        "BLOCK_N": BLOCK_N,
        "BLOCK_K": bytes_k // hidden_TD.element_size(),
    }
    a_RF = hidden_TD.new_empty(rows, hidden)
    decode_up_kernel[(programs, triton.cdiv(hidden, BLOCK_N))](
        hidden_TD, expert_ids_TK, experts.up, experts.up_bias, a_RF, tokens, hidden, model, count,
        hidden_TD.stride(0), experts.up.stride(0), experts.up.stride(1),
        HAS_BIAS=experts.up_bias is not None, GATED=experts.gated, ACTIVATION=experts.activation,
        num_stages=_stages(gemm["BLOCK_T"], 2 if experts.gated else 1, bytes_k, gpu), **gemm,
    )  # fmt: skip
    y_SRD = torch.empty(parts, rows, model, dtype=torch.float32, device=hidden_TD.device)
    decode_down_kernel[(programs, columns, parts)](
        a_RF, expert_ids_TK, experts.down, experts.down_bias, y_SRD, tokens, model, hidden, count,
        experts.down.stride(0), experts.down.stride(1),
        HAS_BIAS=experts.down_bias is not None, PARTS=parts,
        num_stages=_stages(gemm["BLOCK_T"], 1, bytes_k, gpu), **gemm,
    )  # fmt: skip
    out_TD = torch.empty_like(hidden_TD)
    decode_combine_kernel[(tokens, triton.cdiv(model, 256))](
        y_SRD, expert_ids_TK, weights_TK, out_TD, tokens, model, count, PARTS=parts, BLOCK_N=256, **common
    )
    return out_TD


def _stages(block_t: int, matrices: int, bytes_k: int, gpu: Gpu) -> int:
    """As many loads ahead as fit, each of `bytes_k` of every row of x and of the matrices.

    Triton keeps one buffer less than it has stages; where the product is asynchronous and reads them itself, all of
    them, and then two programs are to fit.
    """
    room, buffer = SHARED_MEMORY_LIMIT[gpu.architecture], (block_t + matrices * BLOCK_N) * bytes_k
    is_asynchronous = block_t >= 64 and gpu.architecture in ("sm_90", "sm_100")
    return min(STAGES, room // 2 // buffer if is_asynchronous else room // buffer + 1)
