"""The parts of an expert layer as operations of their own, on the CPU."""

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_codegen_kernels.cpu import compiled
from moe_codegen_kernels.cpu.products import outer_product, product, touched, wide, zero_untouched


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
    out_EMN = left_RM.new_empty(offsets_E.numel() - 1, left_RM.shape[1], right_RN.shape[1])
    zero_untouched(out_EMN, offsets_E)
    sums = wide(left_RM.dtype)
    for expert, rows in touched(offsets_E):
        outer_product(left_RM[rows].to(sums), right_RN[rows].to(sums), out_EMN[expert])
    return out_EMN


def gather_rows(hidden_TD: Tensor, order_R: Tensor, top_k: int) -> Tensor:
    """out_RD[r] = hidden_TD[order_R[r] // top_k], in `wide`."""
    if compiled.moves(hidden_TD):
        return compiled.gather(hidden_TD, order_R, top_k)
    return hidden_TD.index_select(0, order_R // top_k).to(wide(hidden_TD.dtype))


def gather(hidden_TD: Tensor, order_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    """out_RD[r] = hidden_TD[order_R[r] // top_k]; rows of no expert are 0."""
    out_RD = hidden_TD.index_select(0, order_R // top_k)
    out_RD[int(offsets_E[-1]) :].zero_()
    return out_RD


def combine(
    rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """out_TD[t] = sum over k of weights_TK[t, k] * rows_RD[row of (t, k)], summed in `wide`, cast once to `dtype`."""
    dtype = dtype or rows_RD.dtype
    sums = wide(rows_RD.dtype)
    rows_RD, weights_TK = rows_RD.to(sums), weights_TK.to(sums).contiguous()
    if compiled.moves(rows_RD):
        return compiled.combine(rows_RD, weights_TK, inverse_R, offsets_E, dtype)
    bags_TK = inverse_R.view(weights_TK.shape)
    if int(offsets_E[-1]) < inverse_R.numel():  # a row of no expert is row 0, weighed with 0
        routed_TK = bags_TK < offsets_E[-1]
        bags_TK, weights_TK = bags_TK * routed_TK, weights_TK * routed_TK
    out_TD = F.embedding_bag(bags_TK, rows_RD, mode="sum", per_sample_weights=weights_TK)  # K rows a token
    return out_TD.to(dtype)


def combine_backward(
    grad_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    """d_rows_RD[r] = weight of r's slot * grad of its token, d_weights_TK = <grad, row>; 0 for rows of no expert."""
    routed, sums = int(offsets_E[-1]), wide(rows_RD.dtype)
    slots, top_k = order_R[:routed].long(), weights_TK.shape[1]
    grad_RD = grad_TD.index_select(0, slots // top_k).to(sums)
    d_rows_RD, d_weights_TK = rows_RD.new_empty(rows_RD.shape), weights_TK.new_zeros(weights_TK.shape)
    d_rows_RD[routed:] = 0
    d_rows_RD[:routed] = grad_RD * weights_TK.flatten()[slots, None]
    d_weights_TK.view(-1)[slots] = (grad_RD * rows_RD[:routed]).sum(dim=-1).to(weights_TK.dtype)
    return d_rows_RD, d_weights_TK
