"""The expert layer on the CPU: rows sorted by expert, forward and backward, every sum in float32 or wider.

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows; M rows at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate, activate_backward
from moe_codegen_kernels.cpu.parts import combine, gather_rows
from moe_codegen_kernels.cpu.products import outer_product, product, touched, wide, zero_untouched
from moe_codegen_kernels.cpu.routing import routing_plan
from moe_codegen_kernels.records import ExpertWeights, Matrices, RoutingPlan

GROUP_ROWS = 128  # taken together for each thread: work for all of them, on rows that stay in the cache


def expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights[Matrices],
    keep_preactivation: bool = False,
) -> tuple[Tensor, Tensor, RoutingPlan]:
    """out_TD, preactivation_RG (empty unless kept), and the plan; the experts plain, packed or quantised."""
    plan = order_R, inverse_R, offsets_E = routing_plan(expert_ids_TK, experts.up.shape[0])
    sums = wide(hidden_TD.dtype)
    y_RD = hidden_TD.new_empty(order_R.numel(), hidden_TD.shape[1], dtype=sums)
    h_RG = hidden_TD.new_empty((order_R.numel(), experts.up.shape[1]) if keep_preactivation else (0,))
    narrow = hidden_TD.dtype == torch.bfloat16
    for some, rows, bounds in _groups(experts, offsets_E):
        x_MD = gather_rows(hidden_TD, order_R[rows], expert_ids_TK.shape[1])
        if experts.gated or keep_preactivation:
            h_MG = product(x_MD, some.up, some.up_bias, bounds, narrow=narrow)
            a_MF = _activate(h_MG, some)
        else:
            a_MF = product(x_MD, some.up, some.up_bias, bounds, activation=experts.activation, narrow=narrow)
        if keep_preactivation:
            h_RG[rows] = h_MG
        product(a_MF, some.down, some.down_bias, bounds, narrow=narrow, out_RN=y_RD[rows])
    if (routed := int(offsets_E[-1])) < order_R.numel():
        y_RD[routed:].zero_()
        h_RG[routed:].zero_()
    return combine(y_RD, weights_TK, inverse_R, offsets_E, hidden_TD.dtype), h_RG, plan


def expert_ffn_backward(
    grad_TD: Tensor,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights[Matrices],
    preactivation_RG: Tensor | None,
    plan: RoutingPlan,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, weights, up, up_bias, down, down_bias; empty where `needs` says no.

    With s the routing weight of a row, dO its token's output gradient and dA = dO @ down:
    ds = <dA, a> + <dO, down_bias>, dh = s * dA * f'(h), d(down) = dO^T (s a), d(up) = dh^T x, dx = dh @ up.
    Without preactivation_RG it is computed again from hidden_TD.
    """
    needs_hidden, needs_weights, needs_up, needs_up_bias, needs_down, needs_down_bias = needs
    order_R, inverse_R, offsets_E = plan
    top_k = weights_TK.shape[1]
    sums = wide(hidden_TD.dtype)
    weights_R = weights_TK.reshape(-1).to(sums)

    def gradient_if(needed: bool, of: Matrices | None) -> Tensor:
        if not needed or not isinstance(of, Tensor):
            return grad_TD.new_empty(0)
        return zero_untouched(of.new_empty(of.shape), offsets_E)

    d_x_RD = grad_TD.new_zeros((order_R.numel(), hidden_TD.shape[1]) if needs_hidden else (0,), dtype=sums)
    d_weights_R = weights_R.new_zeros(weights_R.numel() if needs_weights else 0)
    d_up, d_up_bias = gradient_if(needs_up, experts.up), gradient_if(needs_up_bias, experts.up_bias)
    d_down, d_down_bias = gradient_if(needs_down, experts.down), gradient_if(needs_down_bias, experts.down_bias)

    for expert, rows in touched(offsets_E):
        one = experts.of(slice(expert, expert + 1))
        bounds = torch.tensor([0, rows.stop - rows.start], dtype=torch.int32)
        slots_M = order_R[rows]
        s_M1 = weights_R.index_select(0, slots_M)[:, None]
        dO_MD, x_MD = gather_rows(grad_TD, slots_M, top_k), gather_rows(hidden_TD, slots_M, top_k)
        if preactivation_RG is not None:
            h_MG = preactivation_RG[rows].to(sums)
        else:
            h_MG = product(x_MD, one.up, one.up_bias, bounds)
        a_MF = _activate(h_MG, experts)
        dA_MF = product(dO_MD, one.down, None, bounds, transposed=True)
        if needs_weights:
            ds_M = (dA_MF * a_MF).sum(dim=-1)
            if one.down_bias is not None:
                ds_M += (dO_MD * one.down_bias).sum(dim=-1)
            d_weights_R[slots_M] = ds_M
        if needs_down:
            outer_product(dO_MD, a_MF * s_M1, d_down[expert])
        if needs_down_bias:
            d_down_bias[expert] = (dO_MD * s_M1).sum(dim=0)
        if needs_up or needs_up_bias or needs_hidden:
            dh_MG = _activate_backward(dA_MF.mul_(s_M1), h_MG, experts)
            if needs_up:
                outer_product(dh_MG, x_MD, d_up[expert])
            if needs_up_bias:
                d_up_bias[expert] = dh_MG.sum(dim=0)
            if needs_hidden:
                product(dh_MG, one.up, None, bounds, transposed=True, out_RN=d_x_RD[rows])

    d_hidden = grad_TD.new_empty(0)
    if needs_hidden:
        ones_TK = torch.ones_like(weights_TK, dtype=sums)
        d_hidden = combine(d_x_RD, ones_TK, inverse_R, offsets_E, hidden_TD.dtype)
    d_weights = d_weights_R.to(weights_TK.dtype)
    if needs_weights:
        d_weights = d_weights.view(weights_TK.shape)
    return d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias


def _groups(
    experts: ExpertWeights[Matrices], offsets_E: Tensor
) -> Iterator[tuple[ExpertWeights[Matrices], slice, Tensor]]:
    """Experts to be taken together, rows of theirs, and which of these are whose.

    Several experts of few rows, or a part of an expert of many. All of a few tokens' at once, for whom the time of
    every small operation counts.
    """
    offsets, wanted = offsets_E.tolist(), GROUP_ROWS * torch.get_num_threads()
    if 0 < offsets[-1] <= 2 * wanted:
        yield experts, slice(0, offsets[-1]), offsets_E
        return
    first = 0
    for after in range(1, len(offsets)):
        start, count = offsets[first], offsets[after] - offsets[first]
        if count >= wanted or after == len(offsets) - 1:
            some, parts = experts.of(slice(first, after)), -(-count // (2 * wanted))
            for part in range(parts):
                rows = slice(start + count * part // parts, start + count * (part + 1) // parts)
                bounds = (offsets_E[first : after + 1] - rows.start).clamp_(0, rows.stop - rows.start)
                yield some, rows, bounds
            first = after


def _activate(h_MG: Tensor, experts: ExpertWeights[Matrices]) -> Tensor:
    if not experts.gated:
        return activate(experts.activation, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    return activate(experts.activation, gate_MF) * value_MF


def _activate_backward(dA_MF: Tensor, h_MG: Tensor, experts: ExpertWeights[Matrices]) -> Tensor:
    if not experts.gated:
        return activate_backward(experts.activation, dA_MF, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    d_gate_MF = activate_backward(experts.activation, dA_MF * value_MF, gate_MF)
    return torch.cat((d_gate_MF, dA_MF * activate(experts.activation, gate_MF)), dim=-1)
