"""The compiled CPU kernels: `grouped_gemm.c`, `quantised.c` and `rows.c` for the instructions of this processor.

`kernels/build_cpu.py` compiles them when the package is installed and a C compiler is found. Without them everything
here runs through torch; `describe_cpu_path` says which of the two it is, and why.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_codegen_kernels.quantised_weights import BLOCK, Quantised
from moe_codegen_kernels.records import Matrices, RoutingPlan

# torch's name for what the processor can do -> the build for it, as GCC names it; arm64 has one baseline.
BUILDS = {
    "AVX512_BF16": "cooperlake",  # the first with that, and with whole-number products of 16 bits
    "AVX512": "x86-64-v4",
    "AVX2": "x86-64-v3",
    "DEFAULT": "armv8-a",
    "SVE256": "armv8-a",
    "SVE128": "armv8-a",
}
FOLDER = Path(__file__).parent
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the names of weights.h, as are these:
QUANTISED = {torch.int8: 3, torch.uint8: 4}
PAIRED = 2  # from those to the ones that become bfloat16 on their way
# How W_e[n][k] lies in memory; the names of grouped_gemm.c.
ROWS, COLUMNS, PANELS = 0, 1, 2
INTEGER, LONG, POINTER = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
ARGUMENTS: dict[str, dict[str, list[Any]]] = {  # of the functions of each C file
    "grouped_gemm": {"grouped_gemm": [INTEGER] * 4 + [LONG] * 4 + [INTEGER] + [POINTER] * 6},
    "quantised": {"quantised_linear": [INTEGER] * 3 + [LONG] * 4 + [INTEGER] + [POINTER] * 6},
    "rows": {
        "routing_plan": [LONG] * 2 + [POINTER] * 4,
        "gather": [INTEGER] * 2 + [LONG] * 3 + [POINTER] * 3,
        "combine": [INTEGER] * 2 + [LONG] * 4 + [POINTER] * 5,
    },
}
ACTIVATIONS = {None: 0, "gelu_tanh": 1, "silu": 2, "relu": 3}  # those of activations.h


def capability() -> str:
    """What this processor can do, as BUILDS names it; torch's name, but for one it has no name for."""
    name = torch.backends.cpu.get_cpu_capability()
    return "AVX512_BF16" if name == "AVX512" and torch.cpu._is_avx512_bf16_supported() else name


@functools.cache
def load(kernel: str) -> ctypes.CDLL | str:
    """`kernel`.c as compiled for this processor, or why there is none."""
    build = BUILDS.get(capability())
    if build is None:
        return f"no build for {capability()}"
    path = FOLDER / f"{kernel}.{build}.so"
    if not path.exists():
        return f"{path.name} is missing; install a C compiler (gcc), then this package again"
    try:
        # Its OpenMP functions are found in the library torch has loaded, so both share one team of threads.
        library = ctypes.CDLL(str(path))
    except OSError as failure:
        return f"{path.name} does not load: {failure}"
    for function, types in ARGUMENTS[kernel].items():
        getattr(library, function).argtypes = types
    return library


def _loaded(kernel: str) -> ctypes.CDLL:
    """`kernel`.c, which is known to be there."""
    library = load(kernel)
    assert isinstance(library, ctypes.CDLL), library
    return library


@functools.cache
def panel_width() -> int:
    """Columns of a packed panel; 0 without the compiled kernel."""
    library = load("grouped_gemm")
    return 0 if isinstance(library, str) else int(library.panel_width())


@functools.cache
def multiplies_pairs() -> bool:
    """Whether the compiled kernel multiplies bfloat16 as such, for which it rounds rows to bfloat16."""
    library = load("grouped_gemm")
    return not isinstance(library, str) and bool(library.multiplies_pairs())


def describe_cpu_path() -> str:
    """What runs the experts on this processor, in one line."""
    library = load("grouped_gemm")
    if isinstance(library, str):
        return f"torch's own products ({library})"
    build = Path(library._name).suffixes[0].removeprefix(".")
    pairs = "bfloat16 in pairs, " if multiplies_pairs() else ""
    tiles = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES if torch_is_faster(dtype))
    many = f"; many rows of {tiles} through torch" if tiles else ""
    return f"compiled for {build}, {pairs}float32 sums, packed panels of {panel_width()} columns{many}"


@functools.cache
def torch_is_faster(dtype: torch.dtype) -> bool:
    """Whether torch multiplies many rows of `dtype` in tile registers (AMX), which the compiled kernel does not use."""
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_amx_tile_supported())
    if dtype == torch.float16:
        return bool(torch.cpu._is_amx_fp16_supported())
    return False


def torch_is_native(dtype: torch.dtype) -> bool:
    """Whether torch multiplies 16-bit matrices with instructions made for it, so that widening them would be slower."""
    return torch_is_faster(dtype) or (dtype == torch.bfloat16 and bool(torch.cpu._is_avx512_bf16_supported()))


def rounds_rows(dtype: torch.dtype) -> bool:
    """Whether weights of 16 bits are multiplied as they are, for which rows are rounded to their dtype."""
    if isinstance(load("grouped_gemm"), str):
        return torch_is_native(dtype)
    return dtype == torch.bfloat16 and multiplies_pairs()


def takes(rows_RK: Tensor, matrices: Matrices, layout: int, out_RN: Tensor) -> bool:
    """Whether the compiled kernel can multiply these: float32 rows, whole panels, everything contiguous."""
    panel = panel_width()
    if isinstance(matrices, Quantised):
        fits = _has_blocks(matrices)
    else:
        fits = matrices.dtype in DTYPES and matrices.is_contiguous()
    return (
        panel > 0
        and fits
        and rows_RK.dtype == out_RN.dtype == torch.float32
        and rows_RK.is_contiguous()
        and out_RN.is_contiguous()
        and out_RN.shape[1] % panel == 0
        and (layout == COLUMNS or rows_RK.shape[1] % panel == 0)
    )


def takes_few(rows_RK: Tensor, matrices: Quantised, layout: int, out_RN: Tensor) -> bool:
    """Whether the compiled kernel for few rows and quantised weights can multiply these."""
    library, (_, columns, inner) = load("quantised"), matrices.shape
    if isinstance(library, str):
        return False
    unit = int(library.quantised_unit())
    return (
        layout == ROWS
        and _has_blocks(matrices)
        and (matrices.group % unit == 0 or (unit % matrices.group == 0 and matrices.stored.dtype == torch.uint8))
        and inner % unit == 0
        and columns % panel_width() == 0
        and rows_RK.dtype == out_RN.dtype == torch.float32
        and rows_RK.is_contiguous()
        and out_RN.is_contiguous()
    )


def _has_blocks(matrices: Quantised) -> bool:
    contiguous = matrices.stored.is_contiguous() and matrices.scales.is_contiguous()
    return matrices.group % BLOCK == 0 and contiguous


def grouped_gemm(
    rows_RK: Tensor,
    matrices: Matrices,
    layout: int,
    bias_EN: Tensor | None,
    offsets_E: Tensor,
    out_RN: Tensor,
    activation: str | None = None,
    narrow: bool = False,
) -> None:
    """out_RN[r] = f(W_e @ rows_RK[r] + bias_EN[e]), for inputs that it `takes`; matrices: E of them in `layout`.

    `activation`: f, of ACTIVATIONS.
    `narrow`: matrices of 8 or 4 bits may be multiplied as bfloat16, where that is faster.
    """
    if layout == PANELS and matrices.shape[3] != panel_width():
        raise ValueError(
            f"matrices {tuple(matrices.shape)} were packed for another processor; this one's panels have "
            f"{panel_width()} columns: pack the plain weights here"
        )
    library = _loaded("grouped_gemm")
    paired = PAIRED if narrow and layout == ROWS and multiplies_pairs() else 0
    if _call(library.grouped_gemm, (layout,), rows_RK, matrices, bias_EN, offsets_E, out_RN, activation, paired):
        raise MemoryError(f"no memory for {rows_RK.shape[0]} rows in the order in which they are read")


def quantised_linear(
    rows_RK: Tensor,
    matrices: Quantised,
    bias_EN: Tensor | None,
    offsets_E: Tensor,
    out_RN: Tensor,
    activation: str | None = None,
) -> None:
    """The same for few rows, which are rounded to 16 bits, and inputs that it `takes_few`."""
    library = _loaded("quantised")
    if _call(library.quantised_linear, (), rows_RK, matrices, bias_EN, offsets_E, out_RN, activation):
        raise MemoryError(f"no memory for {rows_RK.shape[0]} rows in 16 bits")


def moves(tensor: Tensor) -> bool:
    """Whether `rows.c` is there and can read or write these values, or ids."""
    known = tensor.dtype in DTYPES or tensor.dtype == torch.int64
    return not isinstance(load("rows"), str) and known and tensor.is_contiguous() and tensor.is_cpu


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> RoutingPlan:
    """order_R, inverse_R, offsets_E of ids that it `moves`."""
    library = _loaded("rows")
    rows = expert_ids_TK.numel()
    order_R, inverse_R = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.int32)
    offsets_E = torch.empty(num_experts + 1, dtype=torch.int32)
    pointers = (tensor.data_ptr() for tensor in (expert_ids_TK, order_R, inverse_R, offsets_E))
    library.routing_plan(rows, num_experts, *pointers)
    return RoutingPlan(order_R, inverse_R, offsets_E)


def gather(hidden_TD: Tensor, order_R: Tensor, top_k: int) -> Tensor:
    """out_RD, float32: each row's token of a hidden_TD that it `moves`."""
    library = _loaded("rows")
    order_R, rows, columns = order_R.int().contiguous(), order_R.numel(), hidden_TD.shape[1]
    out_RD = torch.empty(rows, columns)
    pointers = (tensor.data_ptr() for tensor in (order_R, hidden_TD, out_RD))
    library.gather(DTYPES[hidden_TD.dtype], torch.get_num_threads(), rows, columns, top_k, *pointers)
    return out_RD


def combine(rows_RD: Tensor, weights_TK: Tensor, inverse_R: Tensor, offsets_E: Tensor, dtype: torch.dtype) -> Tensor:
    """out_TD of `dtype`: the weighted sum of each token's rows, float32 ones that it `moves`, as are the weights."""
    library = _loaded("rows")
    (tokens, top_k), columns = weights_TK.shape, rows_RD.shape[1]
    offsets_E, inverse_R = offsets_E.int().contiguous(), inverse_R.int().contiguous()
    out_TD = torch.empty(tokens, columns, dtype=dtype)
    pointers = (tensor.data_ptr() for tensor in (offsets_E, inverse_R, weights_TK, rows_RD, out_TD))
    sizes = (tokens, columns, top_k, offsets_E.numel() - 1)
    library.combine(DTYPES[dtype], torch.get_num_threads(), *sizes, *pointers)
    return out_TD


def _call(
    function: Any,
    layout: tuple[int, ...],
    rows_RK: Tensor,
    matrices: Matrices,
    bias_EN: Tensor | None,
    offsets_E: Tensor,
    out_RN: Tensor,
    activation: str | None,
    paired: int = 0,
) -> Any:
    """What C returns; both of its functions take the same, but that one knows several layouts."""
    if isinstance(matrices, Quantised):
        dtype, group = QUANTISED[matrices.stored.dtype] + paired, matrices.group
        weights, scales = matrices.stored.data_ptr(), matrices.scales.data_ptr()
    else:
        dtype, group, weights, scales = DTYPES[matrices.dtype], 1, matrices.data_ptr(), None
    bias_EN = None if bias_EN is None else bias_EN.contiguous()  # held by this name until C is done
    return function(
        dtype,
        *layout,
        0 if bias_EN is None else DTYPES[bias_EN.dtype],
        torch.get_num_threads(),
        offsets_E.numel() - 1,
        out_RN.shape[1],
        rows_RK.shape[1],
        group,
        ACTIVATIONS[activation],
        offsets_E.data_ptr(),
        rows_RK.data_ptr(),
        weights,
        scales,
        None if bias_EN is None else bias_EN.data_ptr(),
        out_RN.data_ptr(),
    )
