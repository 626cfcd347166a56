"""The public parts of a layer on the GPU: the kernels `layer` uses, the GEMMs with a schedule from the offsets."""

from torch import Tensor

from moe_codegen_kernels.gpu import rows, tma
from moe_codegen_kernels.gpu.layer import GEMMS_OF
from moe_codegen_kernels.gpu.routing import tile_schedule
from moe_codegen_kernels.tiles import Gpu, choose


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor, gpu: Gpu) -> Tensor:
    """Ragged M; rows of no expert are 0. Matrices may be transposed views."""
    rows_RK = rows_RK.contiguous()
    if 1 not in matrices_ENK.stride()[1:]:
        matrices_ENK = matrices_ENK.contiguous()
    bias_EN = None if bias_EN is None else bias_EN.contiguous()
    count, experts = rows_RK.shape[0], matrices_ENK.shape[0]
    fits = tma.fits(rows_RK, matrices_ENK) and matrices_ENK.shape[1] % 8 == 0
    bucket = choose(gpu, rows_RK.element_size(), count, experts, fits)
    gemms = GEMMS_OF[bucket.path]
    schedule = tile_schedule(offsets_E, count, bucket.block_m, gpu.processors)
    out_RN = gemms.linear(rows_RK, matrices_ENK, bias_EN, schedule, bucket.linear)
    rows.zero_unrouted(out_RN, offsets_E)
    return out_RN


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor, gpu: Gpu) -> Tensor:
    """Ragged K."""
    left_RM, right_RN = left_RM.contiguous(), right_RN.contiguous()
    count, experts = left_RM.shape[0], offsets_E.numel() - 1
    bucket = choose(gpu, left_RM.element_size(), count, experts, tma.fits(left_RM, right_RN))
    gemms = GEMMS_OF[bucket.path]
    schedule = tile_schedule(offsets_E, count, bucket.block_m, gpu.processors)
    return gemms.ragged_k(left_RM, right_RN, schedule, bucket.ragged_k)


def gather(hidden_TD: Tensor, order_R: Tensor, offsets_E: Tensor, top_k: int) -> Tensor:
    """Tokens to routed rows; rows of no expert are 0."""
    out_RD = rows.gather_rows(hidden_TD.contiguous(), order_R, offsets_E, top_k)
    rows.zero_unrouted(out_RD, offsets_E)
    return out_RD


def combine(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor) -> Tensor:
    """Weighted sum over each token's choices."""
    return rows.combine(rows_RD.contiguous(), weights_TK.contiguous(), inverse_R.view(weights_TK.shape), offsets_E)


def combine_backward(
    grad_TD: Tensor, rows_RD: Tensor, weights_TK: Tensor, order_R: Tensor, offsets_E: Tensor
) -> tuple[Tensor, Tensor]:
    """d_rows_RD and d_weights_TK."""
    grad_TD, rows_RD, weights_TK = (x.contiguous() for x in (grad_TD, rows_RD, weights_TK))
    return rows.combine_gradients(grad_TD, rows_RD, weights_TK, order_R, offsets_E)
