"""The expert layer on the CPU: rows sorted by expert, forward and backward, every sum in float32 or wider.

order_R    int32  sorted row -> slot (token*K + choice); rows of one expert are adjacent, slots ascending
inverse_R  int32  slot -> sorted row
offsets_E  int32  E + 1 bounds: expert e owns rows offsets_E[e] .. offsets_E[e+1];
                  rows from offsets_E[E] on belong to no expert (expert-parallel sentinels)

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows; M rows at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate, activate_backward
from moe_codegen_kernels.cpu.parts import combine
from moe_codegen_kernels.cpu.products import outer_product, product, touched, wide
from moe_codegen_kernels.cpu.routing import routing_plan

GROUP_ROWS = 512  # experts are taken together up to so many rows: work for every thread, and no more memory than that


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
    """out_TD, preactivation_RG (empty unless kept), order_R, inverse_R, offsets_E; `up` and `down` may be packed."""
    order_R, inverse_R, offsets_E = routing_plan(expert_ids_TK, up.shape[0])
    sums = wide(hidden_TD.dtype)
    y_RD = hidden_TD.new_empty(order_R.numel(), hidden_TD.shape[1], dtype=sums)
    h_RG = hidden_TD.new_empty((order_R.numel(), up.shape[1]) if keep_preactivation else (0,))
    for experts, rows in _groups(offsets_E):
        bounds = offsets_E[experts.start : experts.stop + 1] - rows.start
        tokens_M = order_R[rows] // expert_ids_TK.shape[1]
        x_MD = hidden_TD.index_select(0, tokens_M).to(sums)
        h_MG = product(x_MD, up[experts], _of(up_bias, experts), bounds)
        if keep_preactivation:
            h_RG[rows] = h_MG
        a_MF = _activate(h_MG, activation, gated)
        product(a_MF, down[experts], _of(down_bias, experts), bounds, out_RN=y_RD[rows])
    y_RD[int(offsets_E[-1]) :].zero_()
    h_RG[int(offsets_E[-1]) :].zero_()
    out_TD = combine(y_RD, weights_TK, inverse_R, offsets_E, hidden_TD.dtype)
    return out_TD, h_RG, order_R, inverse_R, offsets_E


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
    sums = wide(hidden_TD.dtype)
    weights_R = weights_TK.reshape(-1).to(sums)

    def zeros_if(needed: bool, like: Tensor | None) -> Tensor:
        return torch.zeros_like(like) if needed and like is not None else grad_TD.new_empty(0)

    d_x_RD = grad_TD.new_zeros((order_R.numel(), hidden_TD.shape[1]) if needs_hidden else (0,), dtype=sums)
    d_weights_R = weights_R.new_zeros(weights_R.numel() if needs_weights else 0)
    d_up, d_up_bias = zeros_if(needs_up, up), zeros_if(needs_up_bias, up_bias)
    d_down, d_down_bias = zeros_if(needs_down, down), zeros_if(needs_down_bias, down_bias)

    for expert, rows in touched(offsets_E):
        one = slice(expert, expert + 1)
        bounds = torch.tensor([0, rows.stop - rows.start], dtype=torch.int32)
        slots_M = order_R[rows]
        tokens_M = slots_M // top_k
        s_M1 = weights_R.index_select(0, slots_M)[:, None]
        dO_MD = grad_TD.index_select(0, tokens_M).to(sums)
        x_MD = hidden_TD.index_select(0, tokens_M).to(sums)
        if preactivation_RG.numel() > 0:
            h_MG = preactivation_RG[rows].to(sums)
        else:
            h_MG = product(x_MD, up[one], _of(up_bias, one), bounds)
        a_MF = _activate(h_MG, activation, gated)
        dA_MF = product(dO_MD, down[one], None, bounds, transposed=True)
        if needs_weights:
            ds_M = (dA_MF * a_MF).sum(dim=-1)
            if down_bias is not None:
                ds_M += (dO_MD * down_bias[expert]).sum(dim=-1)
            d_weights_R[slots_M] = ds_M
        if needs_down:
            outer_product(dO_MD, a_MF * s_M1, d_down[expert])
        if needs_down_bias:
            d_down_bias[expert] = (dO_MD * s_M1).sum(dim=0)
        if needs_up or needs_up_bias or needs_hidden:
            dh_MG = _activate_backward(dA_MF.mul_(s_M1), h_MG, activation, gated)
            if needs_up:
                outer_product(dh_MG, x_MD, d_up[expert])
            if needs_up_bias:
                d_up_bias[expert] = dh_MG.sum(dim=0)
            if needs_hidden:
                product(dh_MG, up[one], None, bounds, transposed=True, out_RN=d_x_RD[rows])

    d_hidden = grad_TD.new_empty(0)
    if needs_hidden:
        ones_TK = torch.ones_like(weights_TK, dtype=sums)
        d_hidden = combine(d_x_RD, ones_TK, inverse_R, offsets_E, hidden_TD.dtype)
    d_weights = d_weights_R.to(weights_TK.dtype)
    if needs_weights:
        d_weights = d_weights.view(weights_TK.shape)
    return d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias


def _groups(offsets_E: Tensor) -> Iterator[tuple[slice, slice]]:
    """Runs of experts with about GROUP_ROWS rows between them, and those rows."""
    offsets = offsets_E.tolist()
    first = 0
    for after in range(1, len(offsets)):
        rows = slice(offsets[first], offsets[after])
        if rows.stop - rows.start >= GROUP_ROWS or after == len(offsets) - 1:
            if rows.start < rows.stop:
                yield slice(first, after), rows
            first = after


def _of(bias_EN: Tensor | None, experts: slice) -> Tensor | None:
    return None if bias_EN is None else bias_EN[experts]


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
