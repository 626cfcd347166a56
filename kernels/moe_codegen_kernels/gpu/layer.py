"""The expert FFN on the GPU, forward and backward, made of the kernels beside it.

forward:   routing_plan -> tile_schedule -> [gather] -> up (bias, activation) -> linear (bias) -> combine
backward:  tile_schedule -> gather dO, x -> down_gradient -> ragged_k x2 -> linear (dx) -> combine;
           bias and routing-weight gradients from the partial sums the above leave behind

TMA reads contiguous rows, so there `up` gathers x into a transient buffer first; pointers gather as they load.
Nothing here reads a value from the device.

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows.
"""

from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from moe_codegen_kernels.gpu import decode, pointer, rows, tma
from moe_codegen_kernels.gpu.routing import routing_plan, tile_schedule
from moe_codegen_kernels.quantised_weights import Quantised
from moe_codegen_kernels.records import ExpertWeights, RoutingPlan
from moe_codegen_kernels.routing import no_plan
from moe_codegen_kernels.tiles import Gpu, choose

GEMMS_OF: dict[str, ModuleType] = {"tma": tma, "pointer": pointer}


def expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights[Tensor],
    trains: bool,
    keep_preactivation: bool,
    gpu: Gpu,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out_TD; preactivation_RG if kept; order_R, inverse_R, offsets_E if `trains`; else empty tensors."""
    hidden_TD, expert_ids_TK, weights_TK = (x.contiguous() for x in (hidden_TD, expert_ids_TK, weights_TK))
    experts = _contiguous(experts)
    num_rows, top_k = expert_ids_TK.numel(), expert_ids_TK.shape[1]
    if not trains and decode.serves(hidden_TD, top_k, experts):
        out_TD = decode.expert_ffn(hidden_TD, expert_ids_TK, weights_TK, experts, gpu)
        return out_TD, hidden_TD.new_empty(0), *no_plan(expert_ids_TK)

    count = experts.up.shape[0]
    plan = order_R, inverse_R, offsets_E = routing_plan(expert_ids_TK, count)
    fits = tma.fits(hidden_TD, experts.up, experts.down)
    bucket = choose(gpu, hidden_TD.element_size(), num_rows, count, fits)
    schedule = tile_schedule(offsets_E, num_rows, bucket.block_m, gpu.processors)
    gemms = GEMMS_OF[bucket.path]
    up_tile = bucket.up_gated if experts.gated else bucket.up
    a_RF, h_RG = gemms.up(hidden_TD, order_R, top_k, experts, keep_preactivation, schedule, up_tile)
    y_RD = gemms.linear(a_RF, experts.down, experts.down_bias, schedule, bucket.linear)
    out_TD = rows.combine(y_RD, weights_TK, inverse_R.view(expert_ids_TK.shape), offsets_E)
    return out_TD, h_RG, *(plan if trains else no_plan(expert_ids_TK))


def quantised_expert_ffn(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights[Quantised], gpu: Gpu
) -> Tensor | None:
    """out_TD from weights as they are stored; None where `decode` does not serve."""
    if not decode.serves(hidden_TD, expert_ids_TK.shape[1], experts):
        return None
    hidden_TD, expert_ids_TK, weights_TK = (x.contiguous() for x in (hidden_TD, expert_ids_TK, weights_TK))
    return decode.expert_ffn(hidden_TD, expert_ids_TK, weights_TK, _contiguous(experts), gpu)


def expert_ffn_backward(
    grad_TD: Tensor,
    hidden_TD: Tensor,
    weights_TK: Tensor,
    experts: ExpertWeights[Tensor],
    preactivation_RG: Tensor | None,
    plan: RoutingPlan,
    needs: list[bool],
    gpu: Gpu,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, weights, up, up_bias, down, down_bias; empty where `needs` says no.

    Without preactivation_RG it is computed again from hidden_TD. With s a row's routing weight, dO its token's
    output gradient and dA = dO @ down: ds = <dA, a> + <dO, down_bias>, dh = s dA f'(h), d(down) = dO^T (s a),
    d(up) = dh^T x, dx = dh @ up.
    """
    needs_hidden, needs_weights, needs_up, needs_up_bias, needs_down, needs_down_bias = needs
    order_R, inverse_R, offsets_E = plan
    grad_TD, hidden_TD, weights_TK = (x.contiguous() for x in (grad_TD, hidden_TD, weights_TK))
    up, up_bias, down, down_bias, *_ = experts = _contiguous(experts)
    num_rows, top_k = order_R.numel(), weights_TK.shape[1]
    fits = tma.fits(grad_TD, hidden_TD, up, down)
    bucket = choose(gpu, hidden_TD.element_size(), num_rows, up.shape[0], fits)
    gemms = GEMMS_OF[bucket.path]
    schedule = tile_schedule(offsets_E, num_rows, bucket.block_m, gpu.processors)
    model, hidden = down.shape[1:]

    x_RD = None
    if needs_up or preactivation_RG is None:
        x_RD = rows.gather_rows(hidden_TD, order_R, offsets_E, top_k)
    h_RG = preactivation_RG
    if h_RG is None:
        h_RG = gemms.linear(x_RD, up, up_bias, schedule, bucket.linear)

    dots_BR = None
    gemm_dots = triton.cdiv(hidden, bucket.down_gradient.block_n)
    if needs_weights:
        bias_dots = 0 if down_bias is None else triton.cdiv(model, rows.GRADIENT_BLOCK_N)
        dots_BR = torch.empty(gemm_dots + bias_dots, num_rows, dtype=torch.float32, device=grad_TD.device)
    down_partials = rows.new_partials(schedule, model) if needs_down_bias else None
    up_partials = rows.new_partials(schedule, up.shape[1]) if needs_up_bias else None

    dO_RD, s_R = rows.gather_gradient(
        grad_TD, order_R, weights_TK, down_bias, schedule, down_partials,
        None if dots_BR is None else dots_BR[gemm_dots:],
    )  # fmt: skip
    dh_RG, sa_RF = gemms.down_gradient(dO_RD, experts, h_RG, s_R, up_partials, dots_BR, schedule, bucket.down_gradient)

    nothing = [grad_TD.new_empty(0) for _ in needs]
    d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias = nothing
    if dots_BR is not None:
        d_weights = rows.routing_weight_gradient(dots_BR, order_R, offsets_E, weights_TK)
    if up_partials is not None and up_bias is not None:
        d_up_bias = rows.sum_partials(up_partials, schedule, up_bias)
    if down_partials is not None and down_bias is not None:
        d_down_bias = rows.sum_partials(down_partials, schedule, down_bias)
    if needs_down:
        d_down = gemms.ragged_k(dO_RD, sa_RF, schedule, bucket.ragged_k)
    del sa_RF, dO_RD
    if needs_up:
        d_up = gemms.ragged_k(dh_RG, x_RD, schedule, bucket.ragged_k)
    if needs_hidden:
        dx_RD = gemms.linear(dh_RG, up.mT, None, schedule, bucket.linear)
        d_hidden = rows.combine(dx_RD, None, inverse_R.view(weights_TK.shape), offsets_E)
    return d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias


def _contiguous(experts: ExpertWeights[Any]) -> ExpertWeights[Any]:
    up, up_bias, down, down_bias, activation, gated = experts
    up_bias, down_bias = (None if bias is None else bias.contiguous() for bias in (up_bias, down_bias))
    return ExpertWeights(up.contiguous(), up_bias, down.contiguous(), down_bias, activation, gated)
