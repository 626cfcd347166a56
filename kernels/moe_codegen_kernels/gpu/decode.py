"""Few tokens (T <= 64, or 16 of float32), no gradient: the weights of each touched expert cross the memory bus once.

    a_RF[slot] = f(up[e] @ x_t + up_bias[e])                for each slot (t, k), e its expert
    y_SRD[s, slot] = down[e][:, part s] @ a_RF[slot, part s]    (S parts of F; part 0 adds down_bias)
    out_TD[t] = sum over k, then s, of weights_TK[t, k] * y_SRD[s, slot (t, k)]

Time goes into reading weights, so a program keeps all T tokens in its tile, each at its own place: that needs no
plan, no gather and no sort. Of those that did not choose its expert it reads and writes nothing. Programs of an
untouched expert end at once. With fewer routed rows than experts, programs stand for rows instead of experts, and
the first row of each expert works. y and the sum over parts stay float32.

Products are weights times x^T: the weights are the operand that tensor cores take from registers, each made wide by
one thread, and the tokens, however few, are columns.

Weights of 8 or 4 bits (`quantised_weights.py`) cross the bus as they are stored and are made wide in registers. One
scale a row is multiplied with the row's sums, scales of groups with the weights. Of 4 bits a byte holds values 16
apart: the low halves meet their values of x in one product, the high halves theirs in another.

T tokens (BLOCK_T: power of two >= 8), E experts, K top-k (BLOCK_C: power of two >= K), R = T*K slots, D model,
F expert hidden, S parts. BITS of a stored weight, or 0 for one as wide as x; GROUP values of a step share a scale, or
all of a row where it is 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_codegen_kernels.gpu import OPTIONS
from moe_codegen_kernels.gpu.epilogues import activate, add_product, bias_of
from moe_codegen_kernels.quantised_weights import BITS
from moe_codegen_kernels.records import ExpertWeights, Matrices
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


@triton.jit
def load_stored(stored_ptr, column_N, k, N, K, BITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Values k .. k + BLOCK_K of some rows of a contiguous (N, K) matrix as they are stored: (BLOCK_N, elements)."""
    PACKED: tl.constexpr = 2 if BITS == 4 else 1  # values in an element
    k_K = k // PACKED + tl.arange(0, BLOCK_K // PACKED)
    mask = (column_N < N)[:, None] & (k_K < K // PACKED)[None, :]
    return tl.load(stored_ptr + column_N.to(tl.int64)[:, None] * (K // PACKED) + k_K[None, :], mask=mask, other=0)


@triton.jit
def load_scales(scales_ptr, column_N, k, N, K, groups, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr):
    """The scale of each element that `load_stored` gave, in its shape; None where GROUP is 0."""
    if GROUP == 0:
        scales = None
    else:
        J: tl.constexpr = BLOCK_K // GROUP
        BYTES: tl.constexpr = GROUP * BITS // 8
        group_J = (k // GROUP if J > 1 else k // (K // groups)) + tl.arange(0, J)
        mask = (column_N < N)[:, None] & (group_J < groups)[None, :]
        scales = tl.load(scales_ptr + column_N.to(tl.int64)[:, None] * groups + group_J[None, :], mask=mask, other=0.0)
        scales = tl.broadcast_to(scales[:, :, None], (scales.shape[0], J, BYTES))
        scales = tl.reshape(scales, (scales.shape[0], J * BYTES))
    return scales


def _floats_of_halves(one: int) -> tl.constexpr:
    """PTX: of four bytes the low halves, then the high ones; a half q as a 16-bit float, q + 8 units of its last place
    above the one whose bits are `one`.

    Those bits are q's with the sign bit turned over, so two floats take two instructions.
    """
    turned = f"0x{one + 8:04x}{one + 8:04x}"
    merged = "".join(
        f"prmt.b32 q, {word}, 0, {pair}; and.b32 q, q, 0x000f000f; xor.b32 ${2 * half + i}, q, {turned};"
        for half, word in enumerate(("$4", "high"))
        for i, pair in enumerate(("0x4140", "0x4342"))
    )
    return tl.constexpr(f"{{\n.reg .b32 q, high; shr.u32 high, $4, 4; {merged}\n}}")


ABOVE_128 = _floats_of_halves(0x4300)  # in bfloat16, whose last place is worth 1 there
ABOVE_1024 = _floats_of_halves(0x6400)  # in float16, the same


@triton.jit
def halves(stored, dtype: tl.constexpr, PTX: tl.constexpr):
    """The low and the high half of every byte, -8 to 7, as floats, which hold them exactly."""
    if PTX and dtype == tl.float16:
        low, high = tl.inline_asm_elementwise(
            ABOVE_1024, "=r,=r,=r,=r,r", [stored], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
        low, high = low - (1024.0 + 8.0), high - (1024.0 + 8.0)
    elif PTX:
        low, high = tl.inline_asm_elementwise(
            ABOVE_128, "=r,=r,=r,=r,r", [stored], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
        low, high = low - (128.0 + 8.0), high - (128.0 + 8.0)
    else:
        low, high = (stored.to(tl.int32) << 28 >> 28).to(tl.float32), (stored.to(tl.int32) >> 4).to(tl.float32)
    return low, high


@triton.jit
def widened(stored, scales, half: tl.constexpr, BITS: tl.constexpr, PTX: tl.constexpr, dtype: tl.constexpr):
    """What `load_stored` gave in x's dtype, rounded once; of 4 bits, every byte's low or high half."""
    q = stored
    if BITS == 4:
        low, high = halves(stored, dtype, PTX)
        q = low if half == 0 else high
    if scales is not None:
        if q.dtype == dtype and scales.dtype == dtype:
            q = q * scales
        else:
            q = q.to(tl.float32) * scales.to(tl.float32)
    return q.to(dtype)


@triton.jit
def scaled(sums, scales_ptr, column_N, N, BITS: tl.constexpr, GROUP: tl.constexpr):
    """Sums of products with weights that have one scale a row, each with its row's."""
    if BITS > 0 and GROUP == 0:
        sums *= tl.load(scales_ptr + column_N, mask=column_N < N, other=0.0).to(tl.float32)[:, None]
    return sums


@triton.jit
def load_rows(rows_ptr, row_T, is_row_T, k, K, half: tl.constexpr, BITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The values of each token's row, from `k` on, that meet the weights of `widened`: (values, BLOCK_T)."""
    if BITS == 4:
        byte_K = tl.arange(0, BLOCK_K // 2)
        value_K = k + byte_K // 16 * 32 + byte_K % 16 + 16 * half
    else:
        value_K = k + tl.arange(0, BLOCK_K)
    mask = (value_K < K)[:, None] & is_row_T[None, :]
    return tl.load(rows_ptr + row_T[None, :] * K + value_K[:, None], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["T"])
def decode_up_kernel(
    x_ptr, ids_ptr, up_ptr, scales_ptr, bias_ptr, a_ptr, T, N, K, EXPERTS, groups, stride_e,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ACTIVATION: tl.constexpr, BY_ROW: tl.constexpr,
    TOP_K: tl.constexpr, PRECISION: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, PTX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of a_RF (N = F, K = D) for one expert's slots."""
    expert, token_T, is_row_T, slot_T, is_work = touched_expert(ids_ptr, T, EXPERTS, BY_ROW, TOP_K, BLOCK_C, BLOCK_T)
    if not is_work:
        return
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    G: tl.constexpr = 2 if GATED else 1
    HALVES: tl.constexpr = 2 if BITS == 4 else 1
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    up_ptr += expert * G * stride_e
    value_ptr = up_ptr + stride_e
    scales_ptr = scales_ptr + expert * G * N * groups if BITS > 0 else None
    value_scales_ptr = scales_ptr + tl.cast(N, tl.int64) * groups if BITS > 0 else None
    h = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    value = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for k in range(0, K, BLOCK_K):
        stored = load_stored(up_ptr, column_N, k, N, K, BITS, BLOCK_K)
        scales = load_scales(scales_ptr, column_N, k, N, K, groups, BITS, GROUP, BLOCK_K)
        if GATED:
            value_stored = load_stored(value_ptr, column_N, k, N, K, BITS, BLOCK_K)
            value_scales = load_scales(value_scales_ptr, column_N, k, N, K, groups, BITS, GROUP, BLOCK_K)
        for half in tl.static_range(HALVES):
            x = load_rows(x_ptr, token_T, is_row_T, k, K, half, BITS, BLOCK_K)
            h = add_product(h, widened(stored, scales, half, BITS, PTX, dtype), x, PRECISION)
            if GATED:
                value_weights = widened(value_stored, value_scales, half, BITS, PTX, dtype)
                value = add_product(value, value_weights, x, PRECISION)
    h = scaled(h, scales_ptr, column_N, N, BITS, GROUP)
    if HAS_BIAS:
        h += tl.trans(bias_of(bias_ptr, G * expert, column_N, N))
    a = activate(h, ACTIVATION)
    if GATED:
        value = scaled(value, value_scales_ptr, column_N, N, BITS, GROUP)
        if HAS_BIAS:
            value += tl.trans(bias_of(bias_ptr, G * expert + 1, column_N, N))
        a *= value
    tl.store(a_ptr + slot_T[None, :] * N + column_N[:, None], a, mask=(column_N < N)[:, None] & is_row_T[None, :])


@triton.jit(do_not_specialize=["T"])
def decode_down_kernel(
    a_ptr, ids_ptr, down_ptr, scales_ptr, bias_ptr, y_ptr, T, N, K, EXPERTS, groups, stride_e,
    HAS_BIAS: tl.constexpr, BY_ROW: tl.constexpr, PARTS: tl.constexpr,
    TOP_K: tl.constexpr, PRECISION: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, PTX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of y_SRD (N = D, K = F) for one expert's slots and one of PARTS parts of K."""
    expert, _, is_row_T, slot_T, is_work = touched_expert(ids_ptr, T, EXPERTS, BY_ROW, TOP_K, BLOCK_C, BLOCK_T)
    if not is_work:
        return
    part = tl.program_id(2)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    length = tl.cdiv(tl.cdiv(K, BLOCK_K), PARTS) * BLOCK_K
    HALVES: tl.constexpr = 2 if BITS == 4 else 1
    dtype: tl.constexpr = a_ptr.dtype.element_ty
    down_ptr += expert * stride_e
    scales_ptr = scales_ptr + expert * N * groups if BITS > 0 else None
    y = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for k in range(part * length, (part + 1) * length, BLOCK_K):
        stored = load_stored(down_ptr, column_N, k, N, K, BITS, BLOCK_K)
        scales = load_scales(scales_ptr, column_N, k, N, K, groups, BITS, GROUP, BLOCK_K)
        for half in tl.static_range(HALVES):
            a = load_rows(a_ptr, slot_T, is_row_T, k, K, half, BITS, BLOCK_K)
            y = add_product(y, widened(stored, scales, half, BITS, PTX, dtype), a, PRECISION)
    y = scaled(y, scales_ptr, column_N, N, BITS, GROUP)
    if HAS_BIAS:
        y += tl.where(part == 0, tl.trans(bias_of(bias_ptr, expert, column_N, N)), 0.0)
    y_ptrs = y_ptr + (part * T * TOP_K + slot_T)[None, :] * N + column_N[:, None]
    tl.store(y_ptrs, y, mask=(column_N < N)[:, None] & is_row_T[None, :])


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


BLOCK_N = 64  # rows of a weight matrix a program reads: few, so that every processor has several programs
# Of each of those rows in one step, by element size: plain cores want short steps; of two matrices, registers do.
VALUES_K = {2: {1: 128, 2: 64}, 4: {1: 32, 2: 32}}
STAGES = 4
PROGRAMS_A_PROCESSOR = 8  # are enough to keep memory busy
MOST_PARTS = 8  # of F in the second product, whose N = D alone may give fewer


def serves(hidden_TD: Tensor, top_k: int, experts: ExpertWeights[Matrices]) -> bool:
    """Whether this path takes a call without gradients."""
    tokens, element_bytes = hidden_TD.shape[0], hidden_TD.element_size()
    are_few = 0 < tokens <= MOST_TOKENS.get(element_bytes, 0) and tokens * triton.next_power_of_2(top_k) <= MOST_IDS
    return are_few and all(
        _is_readable(matrices, VALUES_K[element_bytes][1]) for matrices in (experts.up, experts.down)
    )


def _is_readable(matrices: Matrices, block_k: int) -> bool:
    """Whether a step of K lies in one group or holds whole ones."""
    if isinstance(matrices, Tensor):
        return True
    group = matrices.group
    return group == matrices.shape[-1] or group % block_k == 0 or block_k % group == 0


def expert_ffn(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights[Matrices], gpu: Gpu
) -> Tensor:
    """out_TD, in three launches. hidden_TD and the experts are contiguous."""
    (tokens, top_k), (count, model, hidden) = expert_ids_TK.shape, experts.down.shape
    rows, element_bytes = tokens * top_k, hidden_TD.element_size()
    programs, columns = min(rows, count), triton.cdiv(model, BLOCK_N)
    parts = 1
    while parts < MOST_PARTS and programs * columns * parts < PROGRAMS_A_PROCESSOR * gpu.processors:
        parts *= 2
    block_t = max(8, triton.next_power_of_2(tokens))
    common = {"TOP_K": top_k, "BLOCK_C": triton.next_power_of_2(top_k), **OPTIONS}
    gemm = common | {
        "BY_ROW": rows < count,
        "PRECISION": precision_of(hidden_TD.dtype),
        "PTX": gpu.architecture.startswith("sm_") and not triton.knobs.runtime.interpret,  # who understands it
        "BLOCK_T": block_t,
        "BLOCK_N": BLOCK_N,
        # Two warps load x half as often as four; of more tokens, their registers cannot hold the sums.
        "num_warps": 2 if block_t <= 32 and element_bytes == 2 else 4,
    }
    a_RF = hidden_TD.new_empty(rows, hidden)
    matrices = 2 if experts.gated else 1
    up, up_scales, up_kind = _as_read(experts.up, matrices, block_t, element_bytes, gpu)
    decode_up_kernel[(programs, triton.cdiv(hidden, BLOCK_N))](
        hidden_TD, expert_ids_TK, up, up_scales, experts.up_bias, a_RF, tokens, hidden, model, count,
        1 if up_scales is None else up_scales.shape[-1], up.stride(0) // matrices,
        HAS_BIAS=experts.up_bias is not None, GATED=experts.gated, ACTIVATION=experts.activation, **up_kind, **gemm,
    )  # fmt: skip
    y_SRD = torch.empty(parts, rows, model, dtype=torch.float32, device=hidden_TD.device)
    down, down_scales, down_kind = _as_read(experts.down, 1, block_t, element_bytes, gpu)
    decode_down_kernel[(programs, columns, parts)](
        a_RF, expert_ids_TK, down, down_scales, experts.down_bias, y_SRD, tokens, model, hidden, count,
        1 if down_scales is None else down_scales.shape[-1], down.stride(0),
        HAS_BIAS=experts.down_bias is not None, PARTS=parts, **down_kind, **gemm,
    )  # fmt: skip
    out_TD = torch.empty_like(hidden_TD)
    decode_combine_kernel[(tokens, triton.cdiv(model, 256))](
        y_SRD, expert_ids_TK, weights_TK, out_TD, tokens, model, count, PARTS=parts, BLOCK_N=256, **common
    )
    return out_TD


def _as_read(
    matrices: Matrices, together: int, block_t: int, element_bytes: int, gpu: Gpu
) -> tuple[Tensor, Tensor | None, dict[str, int]]:
    """The tensor a kernel reads, the scales, and how it reads them, `together` matrices in one step.

    As many loads go ahead as fit, each of a step of every row of x and of the matrices: Triton keeps one buffer less
    than it has stages; where the product is asynchronous and reads them itself, all of them, and then two programs are
    to fit.
    """
    block_k = VALUES_K[element_bytes][together]
    if isinstance(matrices, Tensor):
        stored, scales, bits, group = matrices, None, 0, 0
    else:
        stored, scales, bits = matrices.stored.view(torch.int8), matrices.scales, BITS[matrices.stored.dtype]
        is_row = matrices.group == matrices.shape[-1]  # one group, wherever it ends
        group = 0 if is_row else min(matrices.group, block_k)
    room = SHARED_MEMORY_LIMIT[gpu.architecture]
    buffer = (block_t * element_bytes + together * BLOCK_N * (bits or 8 * element_bytes) // 8) * block_k
    is_asynchronous = block_t >= 64 and gpu.architecture in ("sm_90", "sm_100")
    stages = min(STAGES, room // 2 // buffer if is_asynchronous else room // buffer + 1)
    return stored, scales, {"BITS": bits, "GROUP": group, "BLOCK_K": block_k, "num_stages": stages}
