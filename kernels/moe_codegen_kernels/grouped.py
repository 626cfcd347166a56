"""Products of many small groups of rows with one matrix each, and the weighted sum that ends an MoE layer.

    grouped_gemm           out_RN[r]  = matrices_ENK[e] @ rows_RK[r] + bias_EN[e]     (ragged M)
    grouped_gemm_ragged_k  out_EMN[e] = sum over rows r of e of left_RM[r] right_RN[r]^T
    combine                out_TD[t]  = sum over k of weights_TK[t, k] * rows_RD[inverse_R[t*K + k]]

Expert e owns rows offsets_E[e] .. offsets_E[e+1]; offsets_E and inverse_R come from `routing_plan`.
R routed rows, E experts, T tokens, K top-k (a matrix's inner extent in the products), D model.
"""

from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.tiles import gpu_of


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """Each expert's rows times its matrix, plus its bias; rows of no expert come out as 0. Differentiable."""
    if rows_RK.shape[1] != matrices_ENK.shape[2] or offsets_E.numel() != matrices_ENK.shape[0] + 1:
        raise ValueError(
            f"rows_RK {tuple(rows_RK.shape)}, matrices_ENK {tuple(matrices_ENK.shape)} and "
            f"offsets_E {tuple(offsets_E.shape)} do not fit; expected (R, K), (E, N, K) and (E + 1,)"
        )
    return torch.ops.moe_codegen.grouped_gemm(rows_RK, matrices_ENK, bias_EN, offsets_E)


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """out_EMN: each expert's rows of `left_RM`, transposed, times its rows of `right_RN`; 0 without rows."""
    if left_RM.shape[0] != right_RN.shape[0]:
        raise ValueError(f"left_RM has {left_RM.shape[0]} rows and right_RN {right_RN.shape[0]}; expected equal")
    return torch.ops.moe_codegen.grouped_gemm_ragged_k(left_RM, right_RN, offsets_E)


def combine(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """out_TD: each token's rows weighed and summed in float32 in the order of its choices. Differentiable."""
    if weights_TK.numel() != rows_RD.shape[0]:
        raise ValueError(
            f"rows_RD has {rows_RD.shape[0]} rows and weights_TK {tuple(weights_TK.shape)}; expected R = T*K"
        )
    return torch.ops.moe_codegen.combine(rows_RD, weights_TK, inverse_R, offsets_E)


@torch.library.custom_op("moe_codegen::grouped_gemm", mutates_args=(), device_types="cpu")
def grouped_gemm_op(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """Ragged M."""
    return cpu.grouped_gemm(rows_RK, matrices_ENK, bias_EN, offsets_E)


@grouped_gemm_op.register_kernel("cuda")
def grouped_gemm_cuda(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """The op on a GPU."""
    with torch.cuda.device_of(rows_RK):
        gpu = gpu_of(rows_RK.device)
        return gpu_module("parts").grouped_gemm(rows_RK, matrices_ENK, bias_EN, offsets_E, gpu)


@grouped_gemm_op.register_fake
def _(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    return rows_RK.new_empty(rows_RK.shape[0], matrices_ENK.shape[1])


def _keep_gemm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows_RK, matrices_ENK, _, offsets_E = inputs
    ctx.save_for_backward(rows_RK, matrices_ENK, offsets_E)


def _gemm_gradients(ctx: Any, grad_RN: Tensor) -> tuple[Tensor | None, ...]:
    rows_RK, matrices_ENK, offsets_E = ctx.saved_tensors
    d_rows = d_matrices = d_bias = None
    if ctx.needs_input_grad[0]:
        d_rows = torch.ops.moe_codegen.grouped_gemm(grad_RN, matrices_ENK.mT, None, offsets_E)
    if ctx.needs_input_grad[1]:
        d_matrices = torch.ops.moe_codegen.grouped_gemm_ragged_k(grad_RN, rows_RK, offsets_E)
    if ctx.needs_input_grad[2]:
        ones_R1 = grad_RN.new_ones(grad_RN.shape[0], 1)
        d_bias = torch.ops.moe_codegen.grouped_gemm_ragged_k(grad_RN, ones_R1, offsets_E)[..., 0]
    return d_rows, d_matrices, d_bias, None


grouped_gemm_op.register_autograd(_gemm_gradients, setup_context=_keep_gemm)


@torch.library.custom_op("moe_codegen::grouped_gemm_ragged_k", mutates_args=(), device_types="cpu")
def grouped_gemm_ragged_k_op(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """Ragged K."""
    return cpu.grouped_gemm_ragged_k(left_RM, right_RN, offsets_E)


@grouped_gemm_ragged_k_op.register_kernel("cuda")
def grouped_gemm_ragged_k_cuda(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """The op on a GPU."""
    with torch.cuda.device_of(left_RM):
        return gpu_module("parts").grouped_gemm_ragged_k(left_RM, right_RN, offsets_E, gpu_of(left_RM.device))


@grouped_gemm_ragged_k_op.register_fake
def _(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    return left_RM.new_empty(offsets_E.numel() - 1, left_RM.shape[1], right_RN.shape[1])


@torch.library.custom_op("moe_codegen::combine", mutates_args=(), device_types="cpu")
def combine_op(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """Weighted sum over each token's choices."""
    return cpu.combine(rows_RD, weights_TK, inverse_R, offsets_E)


@combine_op.register_kernel("cuda")
def combine_cuda(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """The op on a GPU."""
    inverse_TK = inverse_R.view(weights_TK.shape)
    with torch.cuda.device_of(rows_RD):
        return gpu_module("rows").combine(rows_RD.contiguous(), weights_TK.contiguous(), inverse_TK, offsets_E)


@combine_op.register_fake
def _(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    return rows_RD.new_empty(weights_TK.shape[0], rows_RD.shape[1])


def _keep_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _combine_gradients(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
    rows_RD, weights_TK, inverse_R, offsets_E = ctx.saved_tensors
    top_k = weights_TK.shape[1]
    order_R = torch.argsort(inverse_R)
    routed_R1 = (torch.arange(order_R.numel(), device=order_R.device) < offsets_E[-1])[:, None]
    grad_RD = grad_TD.index_select(0, order_R // top_k) * routed_R1
    weights_R1 = weights_TK.reshape(-1).index_select(0, order_R)[:, None]
    d_rows_RD = (grad_RD * weights_R1).to(rows_RD.dtype)
    ds_R = (grad_RD.to(weights_TK.dtype) * rows_RD.masked_fill(~routed_R1, 0)).sum(dim=-1)
    d_weights_TK = ds_R.index_select(0, inverse_R).view(weights_TK.shape).to(weights_TK.dtype)
    return d_rows_RD, d_weights_TK, None, None


combine_op.register_autograd(_combine_gradients, setup_context=_keep_combine)
