"""The two ends of an MoE layer: each token's row once for each of its experts, and the weighted sum that ends it.

    gather    out_RD[r] = hidden_TD[order_R[r] // K]
    combine   out_TD[t] = sum over k of weights_TK[t, k] * rows_RD[inverse_R[t*K + k]]

Each is the other's gradient, so that neither adds with atomics. Rows from offsets_E[E] on belong to no expert: `gather`
makes them 0, and `combine` does not read them.

T tokens, D model, E experts, K top-k, R = T*K routed rows.
"""

from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.records import RoutingPlan


def gather(hidden_TD: Tensor, plan: RoutingPlan, top_k: int) -> Tensor:
    """(R, D): the token of each routed row, expert by expert; 0 for rows of no expert. Differentiable."""
    if hidden_TD.dim() != 2 or hidden_TD.shape[0] * top_k != plan.order_R.numel():
        raise ValueError(
            f"hidden_TD {tuple(hidden_TD.shape)} and top_k={top_k} do not fit a plan of {plan.order_R.numel()} rows; "
            "expected (T, D), and T * top_k rows"
        )
    return torch.ops.moe_codegen.gather(hidden_TD, *plan, top_k)


def combine(rows_RD: Tensor, weights_TK: Tensor, plan: RoutingPlan) -> Tensor:
    """(T, D): each token's rows weighed and summed in float32 in the order of its choices. Differentiable."""
    rows = {rows_RD.shape[0], weights_TK.numel(), plan.order_R.numel()}
    if rows_RD.dim() != 2 or weights_TK.dim() != 2 or len(rows) > 1:
        raise ValueError(
            f"rows_RD {tuple(rows_RD.shape)}, weights_TK {tuple(weights_TK.shape)} and a plan of "
            f"{plan.order_R.numel()} rows do not fit; expected (R, D), (T, K) and R = T*K"
        )
    return torch.ops.moe_codegen.combine(rows_RD, weights_TK, *plan)


@torch.library.custom_op("moe_codegen::gather", mutates_args=(), device_types="cpu")
def gather_op(hidden_TD: Tensor, order_R: Tensor, inverse_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    """Tokens to routed rows."""
    return cpu.gather(hidden_TD, order_R, offsets_E, top_k)


@gather_op.register_kernel("cuda")
def gather_cuda(hidden_TD: Tensor, order_R: Tensor, inverse_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    """The op on a GPU."""
    with torch.cuda.device_of(hidden_TD):
        return gpu_module("parts").gather(hidden_TD, order_R, offsets_E, top_k)


@gather_op.register_fake
def _(hidden_TD: Tensor, order_R: Tensor, inverse_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    return hidden_TD.new_empty(order_R.shape[0], hidden_TD.shape[1])


def _keep_plan(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden_TD, *plan, top_k = inputs
    ctx.shape_TK = hidden_TD.shape[0], top_k
    ctx.save_for_backward(*plan)


def _gather_gradient(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
    ones_TK = torch.ones(ctx.shape_TK, dtype=torch.float32, device=grad_RD.device)
    return torch.ops.moe_codegen.combine(grad_RD, ones_TK, *ctx.saved_tensors), None, None, None, None


gather_op.register_autograd(_gather_gradient, setup_context=_keep_plan)


@torch.library.custom_op("moe_codegen::combine", mutates_args=(), device_types="cpu")
def combine_op(rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """Weighted sum over each token's choices."""
    return cpu.combine(rows_RD, weights_TK, inverse_R, offsets_E)


@combine_op.register_kernel("cuda")
def combine_cuda(rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """The op on a GPU."""
    with torch.cuda.device_of(rows_RD):
        return gpu_module("parts").combine(rows_RD, weights_TK, inverse_R, offsets_E)


@combine_op.register_fake
def _(rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    return rows_RD.new_empty(weights_TK.shape[0], rows_RD.shape[1])


@torch.library.custom_op("moe_codegen::combine_backward", mutates_args=(), device_types="cpu")
def combine_backward_op(
    grad_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    """d_rows_RD = weight of the row's slot * grad of its token, d_weights_TK = <grad, row>; 0 for rows of no expert."""
    return cpu.combine_backward(grad_TD, rows_RD, weights_TK, order_R, offsets_E)


@combine_backward_op.register_kernel("cuda")
def combine_backward_cuda(
    grad_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    """The op on a GPU."""
    with torch.cuda.device_of(grad_TD):
        return gpu_module("parts").combine_backward(grad_TD, rows_RD, weights_TK, order_R, offsets_E)


@combine_backward_op.register_fake
def _(
    grad_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    return rows_RD.new_empty(rows_RD.shape), weights_TK.new_empty(weights_TK.shape)


def _keep_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows_RD, weights_TK, order_R, _, offsets_E = inputs
    ctx.save_for_backward(rows_RD, weights_TK, order_R, offsets_E)


def _combine_gradients(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.moe_codegen.combine_backward(grad_TD, *ctx.saved_tensors), None, None, None


combine_op.register_autograd(_combine_gradients, setup_context=_keep_combine)
