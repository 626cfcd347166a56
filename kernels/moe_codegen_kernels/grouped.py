"""Products of many small groups of rows with one matrix each.

    grouped_gemm           out_RN[r]  = matrices_ENK[e] @ rows_RK[r] + bias_EN[e]     (ragged M)
    grouped_gemm_ragged_k  out_EMN[e] = sum over rows r of e of left_RM[r] right_RN[r]^T

Expert e owns rows offsets_E[e] .. offsets_E[e+1]; offsets_E comes from `routing_plan`.
R routed rows, E experts; M, N, K extents of the products.
"""

from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.autocast import autocast_dtype
from moe_codegen_kernels.gpu_import import gpu_module
from moe_codegen_kernels.tiles import gpu_of


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """Each expert's rows times its matrix, plus its bias; rows of no expert come out as 0. Differentiable.

    rows_RK: (R, K), matrices_ENK: (E, N, K), which may be a transposed view, bias_EN: (E, N), of one dtype. Under
    autocast they are cast to autocast's. Returns (R, N) of that dtype.
    """
    fit = (matrices_ENK.shape[0], matrices_ENK.shape[2]) == (offsets_E.numel() - 1, rows_RK.shape[1])
    if not fit or (bias_EN is not None and bias_EN.shape != matrices_ENK.shape[:2]):
        raise ValueError(
            f"rows_RK {tuple(rows_RK.shape)}, matrices_ENK {tuple(matrices_ENK.shape)}, "
            f"bias_EN {None if bias_EN is None else tuple(bias_EN.shape)} and offsets_E {tuple(offsets_E.shape)} "
            "do not fit; expected (R, K), (E, N, K), (E, N) and (E + 1,)"
        )
    dtype = autocast_dtype(rows_RK)
    if dtype is not None:
        rows_RK, matrices_ENK = rows_RK.to(dtype), matrices_ENK.to(dtype)
        bias_EN = None if bias_EN is None else bias_EN.to(dtype)
    if matrices_ENK.dtype != rows_RK.dtype:
        raise ValueError(
            f"rows_RK is {rows_RK.dtype} and matrices_ENK {matrices_ENK.dtype}; cast one, or use torch.autocast"
        )
    return torch.ops.moe_codegen.grouped_gemm(rows_RK, matrices_ENK, bias_EN, offsets_E)


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """out_EMN: each expert's rows of `left_RM`, transposed, times its rows of `right_RN`; 0 without rows."""
    if left_RM.shape[0] != right_RN.shape[0]:
        raise ValueError(f"left_RM has {left_RM.shape[0]} rows and right_RN {right_RN.shape[0]}; expected equal")
    return torch.ops.moe_codegen.grouped_gemm_ragged_k(left_RM, right_RN, offsets_E)


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
        # In the matrices' own order: a gradient in another would be copied into it.
        transposed = matrices_ENK.stride(1) == 1 and matrices_ENK.stride(2) != 1
        left, right = (rows_RK, grad_RN) if transposed else (grad_RN, rows_RK)
        d_matrices = torch.ops.moe_codegen.grouped_gemm_ragged_k(left, right, offsets_E)
        d_matrices = d_matrices.mT if transposed else d_matrices
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
