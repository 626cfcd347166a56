"""The products of routed rows with their experts' matrices: one function, whatever the weights and the processor.

    out_RN[r] = f(W_e @ rows_RK[r] + bias_EN[e])   for every row r of expert e, offsets_E[e] <= r < offsets_E[e + 1]

| rows of an expert | 16 or 32 bits | 16 bits with AMX | 8 or 4 bits | not compiled |
|---|---|---|---|---|
| few | compiled | compiled | compiled, in integers | torch, on weights widened block by block |
| many | compiled | torch, in 16 bits | compiled | torch, the same |

Rows and results are float32 (float64 for float64 rows). Nothing is rounded between an expert's two products, but where
the processor multiplies 16-bit weights as they are: there rows are rounded to their dtype first.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate
from moe_codegen_kernels.cpu import compiled
from moe_codegen_kernels.quantised_weights import Quantised
from moe_codegen_kernels.records import Matrices

MANY_ROWS = 48  # rows of an expert from which torch's products in tile registers are taken
FEW_ROWS = 32  # rows of an expert up to which reading quantised weights once outweighs the speed of a dense product
FEW_ROWS_BESIDE_PAIRS = 16  # the same where that product is of bfloat16 in pairs
WIDE_BYTES = 2**22  # of a gradient's sums, which stay in the cache until they are rounded
BLOCK_BYTES = 2**21  # of widened weights: they stay in the cache until they are multiplied


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def touched(offsets_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, with its rows."""
    for expert, (start, end) in enumerate(itertools.pairwise(offsets_E.tolist())):
        if start < end:
            yield expert, slice(start, end)


def zero_untouched(gradient_E: Tensor, offsets_E: Tensor) -> Tensor:
    """`gradient_E` with zeros, in place, for each expert that has no rows; the others' are still to be written."""
    for expert, (start, end) in enumerate(itertools.pairwise(offsets_E.tolist())):
        if start == end:
            gradient_E[expert].zero_()
    return gradient_E


def most_rows(offsets_E: Tensor) -> int:
    """Rows of the expert that has most."""
    return max(end - start for start, end in itertools.pairwise(offsets_E.tolist()))


def product(
    rows_RK: Tensor,
    matrices: Matrices,
    bias_EN: Tensor | None,
    offsets_E: Tensor,
    *,
    activation: str | None = None,
    transposed: bool = False,
    narrow: bool = False,
    out_RN: Tensor | None = None,
) -> Tensor:
    """f of each expert's rows times its matrix, plus its bias; rows of no expert are not written.

    rows_RK: (R, K) of the `wide` dtype. activation: the name of f [none]; without one, out_RN: where to put it.
    matrices: (E, N, K), or (E, K, N) when `transposed`, plain or quantised; or packed (E, N / P, K, P).
    narrow: whether the layer is of bfloat16, so that quantised matrices may be multiplied as such.
    """
    packed = len(matrices.shape) == 4
    if out_RN is None:
        columns = matrices.shape[1] * matrices.shape[3] if packed else matrices.shape[2 if transposed else 1]
        out_RN = rows_RK.new_empty(rows_RK.shape[0], columns)
    fused = activation if activation in compiled.ACTIVATIONS else None
    layout = compiled.PANELS if packed else compiled.COLUMNS if transposed else compiled.ROWS
    if (
        isinstance(matrices, Quantised)
        and compiled.takes_few(rows_RK, matrices, layout, out_RN)
        and most_rows(offsets_E) <= (FEW_ROWS_BESIDE_PAIRS if narrow and compiled.multiplies_pairs() else FEW_ROWS)
    ):
        compiled.quantised_linear(rows_RK, matrices, bias_EN, offsets_E, out_RN, fused)
    elif packed or (compiled.takes(rows_RK, matrices, layout, out_RN) and not _better_in_16_bits(matrices, offsets_E)):
        compiled.grouped_gemm(rows_RK, matrices, layout, bias_EN, offsets_E, out_RN, fused, narrow)
    else:
        for expert, rows in touched(offsets_E):
            bias_N = None if bias_EN is None else bias_EN[expert]
            _multiply(rows_RK[rows], matrices[expert], bias_N, transposed, out_RN[rows])
        fused = None
    return out_RN if activation is None or activation == fused else activate(activation, out_RN)


def outer_product(left_MN: Tensor, right_MK: Tensor, out_NK: Tensor) -> None:
    """out_NK = left_MN.T @ right_MK, summed in `wide` and rounded once: the gradient of one expert's matrix."""
    if compiled.torch_is_native(out_NK.dtype):  # whose products of a few rows with as few are the faster ones, too
        torch.mm(left_MN.to(out_NK.dtype).T, right_MK.to(out_NK.dtype), out=out_NK)
        return
    left_NM = left_MN.T.contiguous()
    if out_NK.dtype == left_NM.dtype:
        _transposed_product(left_NM, right_MK, out_NK)
        return
    block = max(1, WIDE_BYTES // (left_NM.element_size() * out_NK.shape[1]))
    wide_BK = left_NM.new_empty(min(block, out_NK.shape[0]), out_NK.shape[1])
    for start in range(0, out_NK.shape[0], block):
        some_BM = left_NM[start : start + block]
        _transposed_product(some_BM, right_MK, wide_BK[: len(some_BM)])
        out_NK[start : start + block].copy_(wide_BK[: len(some_BM)])


def _transposed_product(rows_RM: Tensor, matrix_MK: Tensor, out_RK: Tensor) -> None:
    bounds = torch.tensor([0, rows_RM.shape[0]], dtype=torch.int32)
    product(rows_RM, matrix_MK[None], None, bounds, transposed=True, out_RN=out_RK)


def _better_in_16_bits(matrices: Matrices, offsets_E: Tensor) -> bool:
    return (
        isinstance(matrices, Tensor) and compiled.torch_is_faster(matrices.dtype) and most_rows(offsets_E) >= MANY_ROWS
    )


def _multiply(rows_MK: Tensor, matrix: Matrices, bias_N: Tensor | None, transposed: bool, out_MN: Tensor) -> None:
    """out_MN = rows_MK @ matrix.T + bias_N, or @ matrix. `out=` keeps an enclosing autocast from casting anything."""
    if isinstance(matrix, Quantised) and transposed:
        matrix = matrix.to(rows_MK.dtype)
    if isinstance(matrix, Tensor) and transposed:
        matrix = matrix.T
    if isinstance(matrix, Tensor) and matrix.dtype != rows_MK.dtype and compiled.torch_is_native(matrix.dtype):
        # The bias is added before the sum is rounded: a sum that it cancels would be left with the wrong sign.
        narrow_MK = rows_MK.to(matrix.dtype)
        narrow_MN = narrow_MK.new_empty(out_MN.shape)
        if bias_N is None:
            torch.mm(narrow_MK, matrix.T, out=narrow_MN)
        else:
            torch.addmm(bias_N.to(matrix.dtype), narrow_MK, matrix.T, out=narrow_MN)
        out_MN.copy_(narrow_MN)
        return
    if isinstance(matrix, Tensor) and matrix.dtype == rows_MK.dtype:
        torch.mm(rows_MK, matrix.T, out=out_MN)
    else:
        block = max(1, BLOCK_BYTES // (rows_MK.element_size() * matrix.shape[1]))
        for start in range(0, matrix.shape[0], block):
            columns = slice(start, start + block)
            torch.mm(rows_MK, matrix[columns].to(rows_MK.dtype).T, out=out_MN[:, columns])
    if bias_N is not None:
        out_MN += bias_N
