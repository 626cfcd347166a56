"""`linear`: what `F.linear` computes, at inference through the compiled CPU kernel where that is faster than torch.

It is for few rows in every dtype, for any number of 16 bits that torch has to widen, and of float32 with AVX-512, where
it was twice as fast on an AMD processor. It sums in float32 and rounds once.

    M rows, K input features, N output features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_codegen_kernels.cpu import compiled

FEW_ROWS = 64  # up to which the compiled product was faster where torch has a fast one, at all shapes of SantaCoder
AVX512_PANEL = 32


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x (..., K) -> (..., N), of their dtype. Gradients, autocast, other devices and dtypes are left to torch."""
    tensors = [each for each in (x, weight_NK, bias_N) if each is not None]
    is_ours = (
        not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
        and all(each.device.type == "cpu" and each.dtype == weight_NK.dtype for each in tensors)
        and weight_NK.dtype in compiled.DTYPES
        and all(type(each) in (Tensor, nn.Parameter) for each in tensors)  # not sharded, not quantised by others
    )
    return torch.ops.moe_codegen.linear(x, weight_NK, bias_N) if is_ours else F.linear(x, weight_NK, bias_N)


# Not a `custom_op`: what that adds for gradients, which never come here, takes as long as the rest.
torch.library.define("moe_codegen::linear", "(Tensor x, Tensor weight_NK, Tensor? bias_N) -> Tensor")


@torch.library.impl("moe_codegen::linear", "cpu")
def linear_op(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """Compiled where it is faster than torch and fits."""
    rows_MK = x.reshape(-1, x.shape[-1]).float()
    out_MN = rows_MK.new_empty(rows_MK.shape[0], weight_NK.shape[0])
    matrix_1NK, bias_1N = weight_NK[None], None if bias_N is None else bias_N[None]
    is_slower = rows_MK.shape[0] > FEW_ROWS and has_fast_product(x.dtype)
    if is_slower or not compiled.takes(rows_MK, matrix_1NK, compiled.ROWS, out_MN):
        return F.linear(x, weight_NK, bias_N)
    bounds = torch.tensor([0, rows_MK.shape[0]], dtype=torch.int32)
    compiled.grouped_gemm(rows_MK, matrix_1NK, compiled.ROWS, bias_1N, bounds, out_MN)
    return out_MN.to(x.dtype).view(*x.shape[:-1], weight_NK.shape[0])


def has_fast_product(dtype: torch.dtype) -> bool:
    """Whether torch multiplies many rows of `dtype` faster than the compiled kernel."""
    if dtype == torch.float32:
        return compiled.panel_width() < AVX512_PANEL
    return compiled.torch_is_native(dtype)


@torch.library.register_fake("moe_codegen::linear")
def _(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_NK.shape[0])
