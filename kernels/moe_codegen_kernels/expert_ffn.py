"""`expert_ffn`: the experts of one MoE layer as a single differentiable op, on CPU and GPU.

    h = up[e] @ x_t + up_bias[e];   a = f(h), or f(h[:F]) * h[F:] when gated
    out_t = sum over k of weights_TK[t, k] * (down[e] @ a + down_bias[e]),   e = expert_ids_TK[t, k]

Kept for the backward pass: hidden_TD, the routing plan, and the pre-activation h_RG unless `recompute`.

    T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows.
"""

from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.autocast import autocast_dtype
from moe_codegen_kernels.checks import check_layer
from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.records import ExpertWeights, RoutingPlan
from moe_codegen_kernels.routing import fake_plan, no_plan
from moe_codegen_kernels.tiles import gpu_of


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
    recompute: bool = False,
) -> Tensor:
    """Send each token through its chosen experts and sum what they say, weighed.

    hidden_TD: (T, D) bf16, fp16, fp32 (fp64 on CPU). expert_ids_TK: (T, K) integers; an id of E or more
    contributes nothing. weights_TK: (T, K), best float32. up: (E, G, D), up_bias: (E, G), down: (E, D, F),
    down_bias: (E, D), all of hidden's dtype; when gated, the gate is the first F rows of `up`. Under autocast
    all but weights_TK is cast to autocast's dtype. `recompute` keeps only hidden_TD for the backward pass, at
    the price of one more product. Returns (T, D) of hidden's dtype. Repeated, it gives the same bits.
    """
    dtype = autocast_dtype(hidden_TD)
    if dtype is not None:
        hidden_TD, up, down = hidden_TD.to(dtype), up.to(dtype), down.to(dtype)
        up_bias = None if up_bias is None else up_bias.to(dtype)
        down_bias = None if down_bias is None else down_bias.to(dtype)
    experts = ExpertWeights(up, up_bias, down, down_bias, activation, gated)
    check_layer(hidden_TD, expert_ids_TK, weights_TK, experts)
    for name, tensor in (("up", up), ("up_bias", up_bias), ("down", down), ("down_bias", down_bias)):
        if tensor is not None and tensor.dtype != hidden_TD.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} and hidden_TD {hidden_TD.dtype}; cast one, or use torch.autocast"
            )
    inputs = (hidden_TD, weights_TK, up, up_bias, down, down_bias)
    trains = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    out_TD, *_ = torch.ops.moe_codegen.expert_ffn(hidden_TD, expert_ids_TK, weights_TK, *experts, trains, recompute)
    return out_TD


@torch.library.custom_op("moe_codegen::expert_ffn", mutates_args=(), device_types="cpu")
def expert_ffn_op(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
    trains: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out_TD, then for backward preactivation_RG (empty when to `recompute`) and the plan; else all empty."""
    experts = ExpertWeights(up, up_bias, down, down_bias, activation, gated)
    keep = trains and not recompute
    out_TD, preactivation_RG, plan = cpu.expert_ffn(hidden_TD, expert_ids_TK, weights_TK, experts, keep)
    return out_TD, preactivation_RG, *(plan if trains else no_plan(expert_ids_TK))


@expert_ffn_op.register_kernel("cuda")
def expert_ffn_cuda(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op on a GPU."""
    *weights, trains, recompute = arguments
    routed = (hidden_TD, expert_ids_TK, weights_TK)
    with torch.cuda.device_of(hidden_TD):
        keep = trains and not recompute
        return gpu_module("layer").expert_ffn(*routed, ExpertWeights(*weights), trains, keep, gpu_of(hidden_TD.device))


@expert_ffn_op.register_fake
def _(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, up: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, trains, recompute = arguments
    keep = trains and not recompute
    preactivation_RG = hidden_TD.new_empty((expert_ids_TK.numel(), up.shape[1]) if keep else (0,))
    plan = fake_plan(expert_ids_TK, up.shape[0]) if trains else no_plan(expert_ids_TK)
    return hidden_TD.new_empty(hidden_TD.shape), preactivation_RG, *plan


@torch.library.custom_op("moe_codegen::expert_ffn_backward", mutates_args=(), device_types="cpu")
def expert_ffn_backward_op(
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
    """Gradients of hidden, weights, up, up_bias, down, down_bias; empty where `needs` says no."""
    experts = ExpertWeights(up, up_bias, down, down_bias, activation, gated)
    kept_RG = preactivation_RG if preactivation_RG.numel() > 0 else None
    plan = RoutingPlan(order_R, inverse_R, offsets_E)
    return cpu.expert_ffn_backward(grad_TD, hidden_TD, weights_TK, experts, kept_RG, plan, needs)


@expert_ffn_backward_op.register_kernel("cuda")
def expert_ffn_backward_cuda(
    grad_TD: Tensor, hidden_TD: Tensor, weights_TK: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op on a GPU."""
    up, up_bias, down, down_bias, preactivation_RG, order_R, inverse_R, offsets_E, *kind, needs = arguments
    experts = ExpertWeights(up, up_bias, down, down_bias, *kind)
    kept_RG = preactivation_RG if preactivation_RG.numel() > 0 else None
    plan = RoutingPlan(order_R, inverse_R, offsets_E)
    with torch.cuda.device_of(grad_TD):
        return gpu_module("layer").expert_ffn_backward(
            grad_TD, hidden_TD, weights_TK, experts, kept_RG, plan, needs, gpu_of(grad_TD.device)
        )


@expert_ffn_backward_op.register_fake
def _(grad_TD: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs, needs = arguments[:6], arguments[-1]
    d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias = (
        x.new_empty(x.shape) if needed and x is not None else grad_TD.new_empty(0)  # contiguous, whatever x is
        for x, needed in zip(inputs, needs, strict=True)
    )
    return d_hidden, d_weights, d_up, d_up_bias, d_down, d_down_bias


GRADIENT_OF = (0, 2, 3, 4, 5, 6)  # positions of hidden, weights, up, up_bias, down, down_bias in the op


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden_TD, _, weights_TK, up, up_bias, down, down_bias, ctx.activation, ctx.gated, *_ = inputs
    _, preactivation_RG, *plan = output
    ctx.mark_non_differentiable(preactivation_RG)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden_TD, weights_TK, up, up_bias, down, down_bias, preactivation_RG, *plan)


def _gradients(ctx: Any, grad_TD: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 11
    if grad_TD is None:
        return tuple(gradients)
    needs = [ctx.needs_input_grad[position] for position in GRADIENT_OF]
    computed = torch.ops.moe_codegen.expert_ffn_backward(grad_TD, *ctx.saved_tensors, ctx.activation, ctx.gated, needs)
    for position, needed, gradient in zip(GRADIENT_OF, needs, computed, strict=True):
        if needed:
            gradients[position] = gradient
    return tuple(gradients)


expert_ffn_op.register_autograd(_gradients, setup_context=_keep)
