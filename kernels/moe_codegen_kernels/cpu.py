"""The CPU kernels: rows sorted by expert, one dense product per touched expert, sums in float32 or wider.

Products are written with `out=`: it saves a copy, and keeps an enclosing autocast from casting them.

order_R    int32  sorted row -> slot (token*K + choice); rows of one expert are adjacent, slots ascending
inverse_R  int32  slot -> sorted row
offsets_E  int32  E + 1 bounds: expert e owns rows offsets_E[e] .. offsets_E[e+1];
                  rows from offsets_E[E] on belong to no expert (expert-parallel sentinels)

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate, activate_backward


def route(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """weights_TK in float32 or wider, expert_ids_TK int64."""
    scores_TE = torch.softmax(logits_TE, dim=-1, dtype=_wide(logits_TE))
    weights_TK, expert_ids_TK = torch.topk(scores_TE, top_k, dim=-1)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK, expert_ids_TK


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """order_R, inverse_R and offsets_E of the ids, by one stable sort."""
    ids_R = expert_ids_TK.reshape(-1).clamp(max=num_experts)
    order_R = torch.argsort(ids_R, stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), dtype=order_R.dtype)
    counts_E = torch.bincount(ids_R, minlength=num_experts + 1)[:num_experts]
    offsets_E = torch.zeros(num_experts + 1, dtype=torch.int32)
    offsets_E[1:] = counts_E.cumsum(0)
    return order_R.int(), inverse_R.int(), offsets_E


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """out_RN[r] = matrices_ENK[e] @ rows_RK[r] + bias_EN[e]; rows of no expert are 0."""
    out_RN = rows_RK.new_empty(rows_RK.shape[0], matrices_ENK.shape[1])
    for expert, rows in _touched(offsets_E):
        _linear_into(out_RN[rows], rows_RK[rows], matrices_ENK[expert], bias_EN, expert)
    out_RN[int(offsets_E[-1]) :].zero_()
    return out_RN


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """out_EMN[e] = left_RM[rows of e].T @ right_RN[rows of e]; 0 for an expert without rows."""
    out_EMN = left_RM.new_zeros(offsets_E.numel() - 1, left_RM.shape[1], right_RN.shape[1])
    for expert, rows in _touched(offsets_E):
        torch.mm(left_RM[rows].T, right_RN[rows], out=out_EMN[expert])
    return out_EMN


def combine(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """out_TD[t] = sum over k of weights_TK[t, k] * rows_RD[row of (t, k)], summed in `_wide`, cast once."""
    inverse_TK = inverse_R.view(weights_TK.shape)
    routed_TK = inverse_TK < offsets_E[-1]
    weights_TK = weights_TK.to(_wide(rows_RD)) * routed_TK
    inverse_TK = inverse_TK * routed_TK
    out_TD = rows_RD.new_zeros(weights_TK.shape[0], rows_RD.shape[1], dtype=_wide(rows_RD))
    for choice in range(weights_TK.shape[1]):
        chosen_TD = rows_RD.index_select(0, inverse_TK[:, choice]).to(out_TD.dtype)
        out_TD.addcmul_(chosen_TD, weights_TK[:, choice, None])
    return out_TD.to(rows_RD.dtype)


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
    keep_preactivation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out_TD, preactivation_RG (empty unless kept), order_R, inverse_R, offsets_E."""
    order_R, inverse_R, offsets_E = routing_plan(expert_ids_TK, up.shape[0])
    top_k = expert_ids_TK.shape[1]
    y_RD = hidden_TD.new_empty(order_R.numel(), down.shape[1])
    h_RG = hidden_TD.new_empty((order_R.numel(), up.shape[1]) if keep_preactivation else (0,))
    for expert, rows in _touched(offsets_E):
        x_MD = hidden_TD.index_select(0, order_R[rows] // top_k)
        h_MG = h_RG[rows] if keep_preactivation else x_MD.new_empty(x_MD.shape[0], up.shape[1])
        _linear_into(h_MG, x_MD, up[expert], up_bias, expert)
        a_MF = _activate(h_MG, activation, gated)
        _linear_into(y_RD[rows], a_MF, down[expert], down_bias, expert)
    y_RD[int(offsets_E[-1]) :].zero_()
    h_RG[int(offsets_E[-1]) :].zero_()
    return combine(y_RD, weights_TK, inverse_R, offsets_E), h_RG, order_R, inverse_R, offsets_E


def expert_ffn_backward(
    grad_TD: Tensor,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    preactivation_RG: Tensor,
    order_R: Tensor,
    inverse_R: Tensor,
    offsets_E: Tensor,
    activation: str,
    gated: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, weights, up, up_bias, down, down_bias; empty where `needs` says no.

    With s the routing weight of a row, dO its token's output gradient and dA = dO @ down:
    ds = <dA, a> + <dO, down_bias>, dh = s * dA * f'(h), d(down) = dO^T (s a), d(up) = dh^T x, dx = dh @ up.
    An empty preactivation_RG is computed again from hidden_TD.
    """
    needs_hidden, needs_weights, needs_up, needs_up_bias, needs_down, needs_down_bias = needs
    top_k = weights_TK.shape[1]
    wide = _wide(hidden_TD)
    weights_R = weights_TK.reshape(-1).to(wide)

    def zeros_if(needed: bool, like: Tensor | None) -> Tensor:
        return torch.zeros_like(like) if needed and like is not None else grad_TD.new_empty(0)

    d_x_RD = grad_TD.new_zeros((order_R.numel(), hidden_TD.shape[1]) if needs_hidden else (0,))
    d_weights_R = weights_R.new_zeros(weights_R.numel() if needs_weights else 0)
    d_up, d_up_bias = zeros_if(needs_up, up), zeros_if(needs_up_bias, up_bias)
    d_down, d_down_bias = zeros_if(needs_down, down), zeros_if(needs_down_bias, down_bias)

    for expert, rows in _touched(offsets_E):
        slots_M = order_R[rows]
        tokens_M = slots_M // top_k
        s_M1 = weights_R.index_select(0, slots_M)[:, None]
        dO_MD = grad_TD.index_select(0, tokens_M)
        x_MD = hidden_TD.index_select(0, tokens_M)
        if preactivation_RG.numel() > 0:
            h_MG = preactivation_RG[rows]
        else:
            h_MG = x_MD.new_empty(x_MD.shape[0], up.shape[1])
            _linear_into(h_MG, x_MD, up[expert], up_bias, expert)
        a_MF = _activate(h_MG, activation, gated)
        dA_MF = torch.mm(dO_MD, down[expert], out=torch.empty_like(a_MF))
        if needs_weights:
            ds_M = (dA_MF.to(wide) * a_MF).sum(dim=-1)
            if down_bias is not None:
                ds_M += (dO_MD.to(wide) * down_bias[expert]).sum(dim=-1)
            d_weights_R[slots_M] = ds_M
        if needs_down:
            torch.mm(dO_MD.T, (a_MF * s_M1).to(a_MF.dtype), out=d_down[expert])
        if needs_down_bias:
            d_down_bias[expert] = (dO_MD * s_M1).sum(dim=0)
        if needs_up or needs_up_bias or needs_hidden:
            dh_MG = _activate_backward((dA_MF * s_M1).to(dA_MF.dtype), h_MG, activation, gated)
            if needs_up:
                torch.mm(dh_MG.T, x_MD, out=d_up[expert])
            if needs_up_bias:
                d_up_bias[expert] = dh_MG.sum(dim=0, dtype=wide)
            if needs_hidden:
                torch.mm(dh_MG, up[expert], out=d_x_RD[rows])

    d_hidden = d_x_RD
    if needs_hidden:
        ones_TK = torch.ones_like(weights_TK, dtype=wide)
        d_hidden = combine(d_x_RD, ones_TK, inverse_R, offsets_E)
    d_weights = d_weights_R.to(weights_TK.dtype)
    if needs_weights:
        d_weights = d_weights.view(weights_TK.shape)
    return d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias


def _wide(x: Tensor) -> torch.dtype:
    """The dtype sums are kept in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def _touched(offsets_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, with its rows."""
    offsets = offsets_E.tolist()
    for expert, (start, end) in enumerate(itertools.pairwise(offsets)):
        if start < end:
            yield expert, slice(start, end)


def _linear_into(out_MN: Tensor, x_MK: Tensor, matrix_NK: Tensor, bias_EN: Tensor | None, expert: int) -> None:
    """out_MN = x_MK @ matrix_NK.T + bias_EN[expert]."""
    if bias_EN is None:
        torch.mm(x_MK, matrix_NK.T, out=out_MN)
    else:
        torch.addmm(bias_EN[expert], x_MK, matrix_NK.T, out=out_MN)


def _activate(h_MG: Tensor, activation: str, gated: bool) -> Tensor:
    if not gated:
        return activate(activation, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    return activate(activation, gate_MF) * value_MF


def _activate_backward(dA_MF: Tensor, h_MG: Tensor, activation: str, gated: bool) -> Tensor:
    if not gated:
        return activate_backward(activation, dA_MF, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    d_gate_MF = activate_backward(activation, dA_MF * value_MF, gate_MF)
    return torch.cat((d_gate_MF, dA_MF * activate(activation, gate_MF)), dim=-1)
