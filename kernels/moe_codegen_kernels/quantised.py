"""`quantised_expert_ffn`: the experts of one MoE layer with weights of 8 or 4 bits, as one op.

It computes what `expert_ffn` does on the dequantised weights. The weights are frozen: gradients reach hidden_TD and
weights_TK, so that adapters elsewhere and the router train; h is computed again in the backward pass.

Weights are read as they are stored, on the CPU and, for up to 64 tokens, on a GPU. For more tokens there, where the
products take the time, the experts that tokens chose are made wide again and run by `expert_ffn`.

    T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, g values that share a scale.
"""

from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.checks import check_layer
from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.quantised_weights import BITS, Quantised
from moe_codegen_kernels.records import ExpertWeights
from moe_codegen_kernels.tiles import gpu_of

FROZEN = [True, True, False, False, False, False]  # gradients of hidden and weights alone


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
    """Send each token through its chosen experts and sum what they say, weighed.

    hidden_TD: (T, D) of any float dtype. expert_ids_TK: (T, K) integers; an id of E or more contributes nothing.
    weights_TK: (T, K), best float32. up, up_scales: `quantise_weight` of (E, G, D); down, down_scales: of (E, D, F);
    bits and groups show in dtypes and shapes. up_bias: (E, G), down_bias: (E, D), of any float dtype. Returns (T, D)
    of hidden's dtype; repeated, it gives the same bits. Raises ValueError where the arguments do not fit, or where
    a gradient of the experts is asked for.
    """
    experts = (up, up_scales, up_bias, down, down_scales, down_bias)
    for name, stored, scales in (("up", up, up_scales), ("down", down, down_scales)):
        _check_stored(name, stored, scales)
    check_layer(hidden_TD, expert_ids_TK, weights_TK, as_experts(*experts, activation, gated))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in experts):
        raise ValueError(
            "quantised experts are frozen; set requires_grad=False on their scales and biases, "
            "or load the model without quantisation to train them"
        )
    return torch.ops.moe_codegen.quantised_expert_ffn(hidden_TD, expert_ids_TK, weights_TK, *experts, activation, gated)


def _check_stored(name: str, stored: Tensor, scales: Tensor) -> None:
    """Say what of a matrix is not as `quantise_weight` gives it."""
    if stored.dtype not in BITS:
        raise ValueError(
            f"{name} is {stored.dtype}; expected int8 or uint8, as quantise_weight gives them. Adapters cannot be "
            "added to quantised experts: choose other parameters for them, or load the model without quantisation"
        )
    if scales.dtype != torch.bfloat16:
        raise ValueError(f"{name}_scales is {scales.dtype}; expected bfloat16, in which quantise_weight gives them")
    *rows, columns = Quantised(stored, scales).shape
    if [*scales.shape[:-1]] != rows or scales.shape[-1] == 0 or columns % scales.shape[-1]:
        raise ValueError(
            f"{name}_scales has shape {tuple(scales.shape)}; expected a scale for each group of {name}'s rows: "
            f"({', '.join(map(str, rows))}, a divisor of {columns})"
        )


@torch.library.custom_op("moe_codegen::quantised_expert_ffn", mutates_args=(), device_types="cpu")
def quantised_expert_ffn_op(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_scales: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
) -> Tensor:
    """out_TD."""
    experts = as_experts(up, up_scales, up_bias, down, down_scales, down_bias, activation, gated)
    out_TD, *_ = cpu.expert_ffn(hidden_TD, expert_ids_TK, weights_TK, experts)
    return out_TD


@quantised_expert_ffn_op.register_kernel("cuda")
def quantised_expert_ffn_cuda(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, *experts_and_kind: Any
) -> Tensor:
    """The op on a GPU."""
    routed, experts = (hidden_TD, expert_ids_TK, weights_TK), as_experts(*experts_and_kind)
    with torch.cuda.device_of(hidden_TD):
        out_TD = gpu_module("layer").quantised_expert_ffn(*routed, experts, gpu_of(hidden_TD.device))
    return expert_ffn_made_wide(*routed, experts) if out_TD is None else out_TD


def expert_ffn_made_wide(
    hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights[Quantised]
) -> Tensor:
    """The experts that were chosen, made wide, run by `expert_ffn`."""
    touched_ids_TK, wide = _widen_touched(expert_ids_TK, hidden_TD.dtype, experts)
    out_TD, *_ = torch.ops.moe_codegen.expert_ffn(hidden_TD, touched_ids_TK, weights_TK, *wide, False, False)
    return out_TD


@quantised_expert_ffn_op.register_fake
def _(hidden_TD: Tensor, *arguments: Any) -> Tensor:
    return hidden_TD.new_empty(hidden_TD.shape)


@torch.library.custom_op("moe_codegen::quantised_expert_ffn_backward", mutates_args=(), device_types="cpu")
def quantised_expert_ffn_backward_op(
    grad_TD: Tensor,
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_scales: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden_TD and weights_TK."""
    experts = as_experts(up, up_scales, up_bias, down, down_scales, down_bias, activation, gated)
    plan = cpu.routing_plan(expert_ids_TK, up.shape[0])
    d_hidden_TD, d_weights_TK, *_ = cpu.expert_ffn_backward(grad_TD, hidden_TD, weights_TK, experts, None, plan, FROZEN)
    return d_hidden_TD, d_weights_TK


@quantised_expert_ffn_backward_op.register_kernel("cuda")
def quantised_expert_ffn_backward_cuda(
    grad_TD: Tensor, hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, *experts_and_kind: Any
) -> tuple[Tensor, Tensor]:
    """The op on a GPU."""
    touched_ids_TK, wide = _widen_touched(expert_ids_TK, hidden_TD.dtype, as_experts(*experts_and_kind))
    _, preactivation_RG, *plan = torch.ops.moe_codegen.expert_ffn(
        hidden_TD, touched_ids_TK, weights_TK, *wide, True, True
    )
    *matrices, activation, gated = wide
    d_hidden, d_weights, *_ = torch.ops.moe_codegen.expert_ffn_backward(
        grad_TD, hidden_TD, weights_TK, *matrices, preactivation_RG, *plan, activation, gated, FROZEN
    )
    return d_hidden, d_weights


@quantised_expert_ffn_backward_op.register_fake
def _(
    grad_TD: Tensor, hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    return hidden_TD.new_empty(hidden_TD.shape), weights_TK.new_empty(weights_TK.shape)


def as_experts(
    up: Tensor,
    up_scales: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
) -> ExpertWeights[Quantised]:
    """The op's flat arguments as one."""
    return ExpertWeights(Quantised(up, up_scales), up_bias, Quantised(down, down_scales), down_bias, activation, gated)


def _widen_touched(
    expert_ids_TK: Tensor, dtype: torch.dtype, experts: ExpertWeights[Quantised]
) -> tuple[Tensor, ExpertWeights[Tensor]]:
    """The ids counted anew over the experts that occur, and those experts in `dtype`; waits for the device."""
    count, device = experts.up.shape[0], expert_ids_TK.device
    is_chosen_E = torch.zeros(count + 1, dtype=torch.bool, device=device)
    is_chosen_E[expert_ids_TK.clamp(max=count).flatten()] = True
    is_chosen_E[0] |= ~is_chosen_E[:-1].any()  # one at least, for `expert_ffn` wants to see its shape
    chosen = experts.of(is_chosen_E[:-1].nonzero().flatten())
    # Ids of no expert are counted after the last chosen one.
    touched_ids_TK = (is_chosen_E.cumsum(0) - 1)[expert_ids_TK.clamp(max=count)]
    up_bias, down_bias = (None if x is None else x.to(dtype) for x in (chosen.up_bias, chosen.down_bias))
    kind = (experts.activation, experts.gated)
    return touched_ids_TK, ExpertWeights(chosen.up.to(dtype), up_bias, chosen.down.to(dtype), down_bias, *kind)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.gated = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
    d_hidden_TD, d_weights_TK = torch.ops.moe_codegen.quantised_expert_ffn_backward(
        grad_TD, *ctx.saved_tensors, ctx.activation, ctx.gated
    )
    return d_hidden_TD, None, d_weights_TK, *[None] * 8


quantised_expert_ffn_op.register_autograd(_gradients, setup_context=_keep)
