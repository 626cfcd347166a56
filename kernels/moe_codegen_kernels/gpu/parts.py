"""The public grouped GEMMs on the GPU: a schedule from the offsets, then the kernels `layer` uses."""

from torch import Tensor

from moe_codegen_kernels.gpu import tma
from moe_codegen_kernels.gpu.layer import GEMMS_OF
from moe_codegen_kernels.gpu.routing import tile_schedule
from moe_codegen_kernels.gpu.rows import zero_unrouted
from moe_codegen_kernels.tiles import Gpu, choose


def grouped_gemm(rows_RK: Tensor, matrices_ENK: Tensor, bias_EN: Tensor | None, offsets_E: Tensor, gpu: Gpu) -> Tensor:
    """Ragged M; rows of no expert are 0. Matrices may be transposed views."""
    rows_RK = rows_RK.contiguous()
    if 1 not in matrices_ENK.stride()[1:]:
        matrices_ENK = matrices_ENK.contiguous()
    bias_EN = None if bias_EN is None else bias_EN.contiguous()
    rows, experts = rows_RK.shape[0], matrices_ENK.shape[0]
    fits = tma.fits(rows_RK, matrices_ENK) and matrices_ENK.shape[1] % 8 == 0
    bucket = choose(gpu, rows_RK.element_size(), rows, experts, fits)
    gemms = GEMMS_OF[bucket.path]
    schedule = tile_schedule(offsets_E, rows, bucket.block_m, gpu.processors)
    out_RN = gemms.linear(rows_RK, matrices_ENK, bias_EN, schedule, bucket.linear)
    zero_unrouted(out_RN, offsets_E)
    return out_RN


def grouped_gemm_ragged_k(left_RM: Tensor, right_RN: Tensor, offsets_E: Tensor, gpu: Gpu) -> Tensor:
    """Ragged K."""
    left_RM, right_RN = left_RM.contiguous(), right_RN.contiguous()
    rows, experts = left_RM.shape[0], offsets_E.numel() - 1
    bucket = choose(gpu, left_RM.element_size(), rows, experts, tma.fits(left_RM, right_RN))
    gemms = GEMMS_OF[bucket.path]
    schedule = tile_schedule(offsets_E, rows, bucket.block_m, gpu.processors)
    return gemms.ragged_k(left_RM, right_RN, schedule, bucket.ragged_k)
