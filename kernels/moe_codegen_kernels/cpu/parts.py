"""The parts of an expert layer as operations of their own, on the CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_codegen_kernels.cpu.products import outer_product, product, touched, wide


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor) -> Tensor:
    """out_RN[r] = matrices_ENK[e] @ rows_RK[r] + bias_EN[e]; rows of no expert are 0."""
    rows_RK = rows_RK.to(wide(matrices_ENK.dtype)).contiguous()
    if matrices_ENK.mT.is_contiguous():
        out_RN = product(rows_RK, matrices_ENK.mT, bias_EN, offsets_E, transposed=True)
    else:
        out_RN = product(rows_RK, matrices_ENK, bias_EN, offsets_E)
    out_RN[int(offsets_E[-1]) :].zero_()
    return out_RN.to(matrices_ENK.dtype)


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor) -> Tensor:
    """out_EMN[e] = left_RM[rows of e].T @ right_RN[rows of e]; 0 for an expert without rows."""
    out_EMN = left_RM.new_zeros(offsets_E.numel() - 1, left_RM.shape[1], right_RN.shape[1])
    sums = wide(left_RM.dtype)
    for expert, rows in touched(offsets_E):
        outer_product(left_RM[rows].to(sums), right_RN[rows].to(sums), out_EMN[expert])
    return out_EMN


def combine(
    rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """out_TD[t] = sum over k of weights_TK[t, k] * rows_RD[row of (t, k)], summed in `wide`, cast once to `dtype`."""
    sums = wide(rows_RD.dtype)
    bags_TK, weights_TK = inverse_R.view(weights_TK.shape), weights_TK.to(sums)
    if int(offsets_E[-1]) < inverse_R.numel():  # a row of no expert is row 0, weighed with 0
        routed_TK = bags_TK < offsets_E[-1]
        bags_TK, weights_TK = bags_TK * routed_TK, weights_TK * routed_TK
    out_TD = F.embedding_bag(bags_TK, rows_RD.to(sums), mode="sum", per_sample_weights=weights_TK)  # K rows a token
    return out_TD.to(dtype or rows_RD.dtype)
