"""The definition of every op, in the plainest torch: slow, differentiable, and right in float64.

Tests, benchmarks and `tune` compare the kernels with these functions; nothing else calls them.

    T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows.
    A routed row r is one (token, choice) pair; its slot is token*K + choice.
"""

import itertools

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate


def route(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """weights_TK, expert_ids_TK = topk(softmax(logits_TE)); `renormalise`: each token's sum to 1."""
    scores_TE = torch.softmax(logits_TE, dim=-1)
    weights_TK, expert_ids_TK = torch.topk(scores_TE, top_k, dim=-1)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK, expert_ids_TK


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """order_R, inverse_R, offsets_E of `moe_codegen_kernels.routing_plan`, row by row in Python."""
    slots_of: list[list[int]] = [[] for _ in range(num_experts + 1)]
    for slot, expert in enumerate(expert_ids_TK.flatten().tolist()):
        slots_of[min(expert, num_experts)].append(slot)
    order = [slot for slots in slots_of for slot in slots]
    inverse = [0] * len(order)
    for row, slot in enumerate(order):
        inverse[slot] = row
    offsets = [0]
    for slots in slots_of[:num_experts]:
        offsets.append(offsets[-1] + len(slots))
    tensors = [torch.tensor(values, dtype=torch.int32) for values in (order, inverse, offsets)]
    return tensors[0], tensors[1], tensors[2]


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """out_RN[r] = matrices_ENK[e] @ rows_RK[r] + bias_EN[e] for each row r of expert e; other rows are 0."""
    out_RN = rows_RK.new_zeros(rows_RK.shape[0], matrices_ENK.shape[1])
    for expert, (start, end) in enumerate(_spans(offsets_E)):
        product = rows_RK[start:end] @ matrices_ENK[expert].T
        out_RN[start:end] = product if bias_EN is None else product + bias_EN[expert]
    return out_RN


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """out_EMN[e] = left_RM[rows of e].T @ right_RN[rows of e]."""
    return torch.stack([left_RM[start:end].T @ right_RN[start:end] for start, end in _spans(offsets_E)])


def gather(hidden_TD: Tensor, order_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    """out_RD[r] = hidden_TD[order_R[r] // top_k]; rows of no expert are 0."""
    is_routed_R = torch.arange(order_R.numel()) < offsets_E[-1]
    return hidden_TD[order_R // top_k] * is_routed_R[:, None]


def combine(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """out_TD[t] = sum over k of weights_TK[t, k] * rows_RD[row of (t, k)]; slots of no expert add nothing."""
    tokens, top_k = weights_TK.shape
    out_TD = rows_RD.new_zeros(tokens, rows_RD.shape[1])
    for slot, row in enumerate(inverse_R.tolist()):
        if row < offsets_E[-1]:
            out_TD[slot // top_k] += weights_TK.flatten()[slot] * rows_RD[row]
    return out_TD


def activated(h_RG: Tensor, activation: str, gated: bool) -> Tensor:
    """a_RF = f(h), or f(h[:F]) * h[F:] when gated."""
    if not gated:
        return activate(activation, h_RG)
    gate_RF, value_RF = h_RG.chunk(2, dim=-1)
    return activate(activation, gate_RF) * value_RF


def expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    *,
    activation: str,
    gated: bool,
) -> Tensor:
    """out_TD[t] = sum over k of weights_TK[t, k] * FFN_e(hidden_TD[t]), e = expert_ids_TK[t, k].

    FFN_e(x) = down[e] @ activated(up[e] @ x + up_bias[e]) + down_bias[e]. An id of E or more contributes nothing.
    """
    out_TD = torch.zeros_like(hidden_TD)
    for expert in range(up.shape[0]):
        share_T = (weights_TK * (expert_ids_TK == expert)).sum(dim=-1)
        h_TG = hidden_TD @ up[expert].T
        if up_bias is not None:
            h_TG = h_TG + up_bias[expert]
        y_TD = activated(h_TG, activation, gated) @ down[expert].T
        if down_bias is not None:
            y_TD = y_TD + down_bias[expert]
        out_TD = out_TD + share_T[:, None] * y_TD
    return out_TD


def dequantise(stored: Tensor, scales: Tensor) -> Tensor:
    """(N, K) float64 of one matrix stored in 8 or 4 bits, value by value in Python."""
    rows = []
    for row, row_scales in zip(stored.tolist(), scales.double().tolist(), strict=True):
        if stored.dtype == torch.uint8:
            blocks = [row[start : start + 16] for start in range(0, len(row), 16)]
            halves = [half for block in blocks for half in ([b % 16 for b in block], [b // 16 for b in block])]
            row = [half - 16 if half > 7 else half for block in halves for half in block]
        group = len(row) // len(row_scales)
        rows.append([row_scales[k // group] * q for k, q in enumerate(row)])
    return torch.tensor(rows, dtype=torch.float64)


def quantised_expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_scales: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    *,
    activation: str,
    gated: bool,
) -> Tensor:
    """`expert_ffn` of the dequantised weights."""
    wide = [
        torch.stack([dequantise(*pair) for pair in zip(matrices, scales, strict=True)]).to(hidden_TD.dtype)
        for matrices, scales in ((up, up_scales), (down, down_scales))
    ]
    biases = [None if bias is None else bias.to(hidden_TD.dtype) for bias in (up_bias, down_bias)]
    return expert_ffn(
        hidden_TD, expert_ids_TK, weights_TK, wide[0], biases[0], wide[1], biases[1],
        activation=activation, gated=gated,
    )  # fmt: skip


def _spans(offsets_E: Tensor) -> list[tuple[int, int]]:
    offsets = offsets_E.tolist()
    return list(itertools.pairwise(offsets))
