"""The products of routed rows with their experts' matrices: one function, whatever the dtype and the processor.

    out_RN[r] = W_e @ rows_RK[r] + bias_EN[e]      for every row r of expert e, offsets_E[e] <= r < offsets_E[e + 1]

| rows of an expert | float32, float16, bfloat16 | with native 16-bit products | not compiled |
|---|---|---|---|
| few | compiled | compiled | torch |
| many | compiled | torch, in 16 bits | torch; 16-bit weights widened block by block |

Rows and results are float32 (float64 for float64 weights), so nothing is rounded between an expert's two products.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from moe_codegen_kernels.cpu import compiled

MANY_ROWS = 48  # rows of an expert from which native 16-bit products beat reading the weights into float32
BLOCK_BYTES = 2**21  # of widened weights: they stay in the cache until they are multiplied


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def touched(offsets_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, with its rows."""
    for expert, (start, end) in enumerate(itertools.pairwise(offsets_E.tolist())):
        if start < end:
            yield expert, slice(start, end)


def product(
    rows_RK: Tensor,
    matrices: Tensor,
    bias_EN: Tensor | None,
    offsets_E: Tensor,
    *,
    transposed: bool = False,
    out_RN: Tensor | None = None,
) -> Tensor:
    """Each expert's rows times its matrix, plus its bias; rows of no expert are not written.

    rows_RK: (R, K) of the `wide` dtype. out_RN: where to put it.
    matrices: (E, N, K), or (E, K, N) when `transposed`, or packed (E, N / P, K, P).
    """
    packed = matrices.dim() == 4
    if out_RN is None:
        columns = matrices.shape[1] * matrices.shape[3] if packed else matrices.shape[2 if transposed else 1]
        out_RN = rows_RK.new_empty(rows_RK.shape[0], columns)
    layout = compiled.PANELS if packed else compiled.COLUMNS if transposed else compiled.ROWS
    if packed or (
        compiled.takes(rows_RK, matrices, layout, out_RN) and not _better_in_16_bits(matrices.dtype, offsets_E)
    ):
        compiled.grouped_gemm(rows_RK, matrices, layout, bias_EN, offsets_E, out_RN)
        return out_RN
    for expert, rows in touched(offsets_E):
        matrix_NK = matrices[expert].T if transposed else matrices[expert]
        _multiply(rows_RK[rows], matrix_NK, out_RN[rows])
        if bias_EN is not None:
            out_RN[rows] += bias_EN[expert]
    return out_RN


def outer_product(left_MN: Tensor, right_MK: Tensor, out_NK: Tensor) -> None:
    """out_NK = left_MN.T @ right_MK, summed in `wide` and rounded once: the gradient of one expert's matrix."""
    left_NM = left_MN.T.contiguous()
    bounds = torch.tensor([0, left_NM.shape[0]], dtype=torch.int32)
    wide_NK = out_NK if out_NK.dtype == left_NM.dtype else torch.empty_like(out_NK, dtype=left_NM.dtype)
    product(left_NM, right_MK[None], None, bounds, transposed=True, out_RN=wide_NK)
    if wide_NK is not out_NK:
        out_NK.copy_(wide_NK)


def _better_in_16_bits(dtype: torch.dtype, offsets_E: Tensor) -> bool:
    return compiled.is_native(dtype) and int(offsets_E.diff().max()) >= MANY_ROWS


def _multiply(rows_MK: Tensor, matrix_NK: Tensor, out_MN: Tensor) -> None:
    """out_MN = rows_MK @ matrix_NK.T. `out=` keeps an enclosing autocast from casting what is multiplied."""
    if matrix_NK.dtype == rows_MK.dtype:
        torch.mm(rows_MK, matrix_NK.T, out=out_MN)
    elif compiled.is_native(matrix_NK.dtype):
        narrow_MK = rows_MK.to(matrix_NK.dtype)
        out_MN.copy_(torch.mm(narrow_MK, matrix_NK.T, out=narrow_MK.new_empty(out_MN.shape)))
    else:
        block = max(1, BLOCK_BYTES // (rows_MK.element_size() * matrix_NK.shape[1]))
        for start in range(0, matrix_NK.shape[0], block):
            columns = slice(start, start + block)
            torch.mm(rows_MK, matrix_NK[columns].to(rows_MK.dtype).T, out=out_MN[:, columns])
