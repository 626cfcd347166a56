"""From router logits to the order in which the expert kernels read the rows.

scores_TE = softmax(logits_TE);  weights_TK, expert_ids_TK = topk(scores_TE);  weights /= sum(weights)
order_R, inverse_R, offsets_E = stable sort of the slots by expert      (`RoutingPlan` says what each holds)

T tokens, E experts, K top-k, R = T*K routed rows.
"""

from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.records import RoutingPlan


def route(logits_TE: Tensor, top_k: int, renormalise: bool = True) -> tuple[Tensor, Tensor]:
    """Choose `top_k` experts for each token and weigh them: softmax, top-k and renormalisation in one kernel.

    logits_TE: (T, E), any float dtype. Returns weights_TK (T, K) float32 (float64 for float64 logits),
    largest first, and expert_ids_TK (T, K) int64. Differentiable in the logits.
    """
    if logits_TE.dim() != 2:
        raise ValueError(f"logits_TE has shape {tuple(logits_TE.shape)}; expected (tokens, experts)")
    if not 1 <= top_k <= logits_TE.shape[1]:
        raise ValueError(
            f"top_k={top_k} is not within 1 .. num_experts={logits_TE.shape[1]}; lower top_k or add experts"
        )
    return torch.ops.moe_codegen.route(logits_TE, top_k, renormalise)


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> RoutingPlan:
    """Sort the routed rows by expert, stably, on the device and without a host synchronisation.

    expert_ids_TK: (T, K) int32 or int64 in 0 .. num_experts; num_experts itself means no expert.
    """
    if expert_ids_TK.dim() != 2:
        raise ValueError(f"expert_ids_TK has shape {tuple(expert_ids_TK.shape)}; expected (tokens, top_k)")
    return RoutingPlan(*torch.ops.moe_codegen.routing_plan(expert_ids_TK, num_experts))


@torch.library.custom_op("moe_codegen::route", mutates_args=())
def route_op(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Routing weights and expert ids."""
    return cpu.route(logits_TE, top_k, renormalise)


@route_op.register_kernel("cuda")
def route_cuda(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The op on a GPU; float64, which the kernel does not know, in torch's own operations."""
    if logits_TE.dtype == torch.float64:
        return cpu.route(logits_TE, top_k, renormalise)
    with torch.cuda.device_of(logits_TE):
        return gpu_module("routing").route(logits_TE, top_k, renormalise)


@route_op.register_fake
def _(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    shape = (logits_TE.shape[0], top_k)
    wide = torch.promote_types(logits_TE.dtype, torch.float32)
    return logits_TE.new_empty(shape, dtype=wide), logits_TE.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("moe_codegen::route_backward", mutates_args=())
def route_backward_op(
    grad_TK: Tensor, logits_TE: Tensor, weights_TK: Tensor, expert_ids_TK: Tensor, renormalise: bool
) -> Tensor:
    """Gradient of the logits, in torch's own operations.

    Renormalised weights are a softmax over the chosen logits alone: d_chosen = w * (grad - <grad, w>).
    Otherwise w is a slice of the full softmax p: d = scatter(w * grad) - p * <grad, w>.
    """
    dot_T1 = (grad_TK * weights_TK).sum(dim=-1, keepdim=True)
    if renormalise:
        d_logits_TE = logits_TE.new_zeros(logits_TE.shape, dtype=weights_TK.dtype)
        d_logits_TE.scatter_(1, expert_ids_TK, weights_TK * (grad_TK - dot_T1))
    else:
        d_logits_TE = -dot_T1 * torch.softmax(logits_TE.contiguous(), dim=-1, dtype=weights_TK.dtype)
        d_logits_TE.scatter_add_(1, expert_ids_TK, weights_TK * grad_TK)
    return d_logits_TE.to(logits_TE.dtype)


@route_backward_op.register_fake
def _(grad_TK: Tensor, logits_TE: Tensor, weights_TK: Tensor, expert_ids_TK: Tensor, renormalise: bool) -> Tensor:
    return logits_TE.new_empty(logits_TE.shape)


def _keep_route(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits_TE, _, ctx.renormalise = inputs
    ctx.save_for_backward(logits_TE, *output)


def _route_gradients(ctx: Any, grad_TK: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return torch.ops.moe_codegen.route_backward(grad_TK, *ctx.saved_tensors, ctx.renormalise), None, None


route_op.register_autograd(_route_gradients, setup_context=_keep_route)


@torch.library.custom_op("moe_codegen::routing_plan", mutates_args=())
def routing_plan_op(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """order_R, inverse_R, offsets_E."""
    return cpu.routing_plan(expert_ids_TK, num_experts)


@routing_plan_op.register_kernel("cuda")
def routing_plan_cuda(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a GPU."""
    with torch.cuda.device_of(expert_ids_TK):
        return gpu_module("routing").routing_plan(expert_ids_TK, num_experts)


@routing_plan_op.register_fake
def _(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    return fake_plan(expert_ids_TK, num_experts)


def fake_plan(expert_ids_TK: Tensor, num_experts: int) -> RoutingPlan:
    """Uninitialised tensors of a plan's shapes, for tracing."""
    sizes = (expert_ids_TK.numel(), expert_ids_TK.numel(), num_experts + 1)
    return RoutingPlan(*(expert_ids_TK.new_empty(size, dtype=torch.int32) for size in sizes))


def no_plan(expert_ids_TK: Tensor) -> RoutingPlan:
    """What stands for a plan that nobody will read."""
    return RoutingPlan(*(expert_ids_TK.new_empty(0, dtype=torch.int32) for _ in range(3)))
