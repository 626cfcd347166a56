"""Quantised experts on the CPU: few rows by the compiled kernel, many by blocks of the weight made wide again.

Everything is computed in float32 (float64 for float64): its products run at three to six times the speed of bfloat16's
on a processor without bfloat16 instructions, and beside the weights the activations are small.

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k; M rows of one expert.
"""

import ctypes
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate, activate_backward
from moe_codegen_kernels.cpu import compiled
from moe_codegen_kernels.quantised_weights import BITS, BLOCK, dequantise

FEW_ROWS = 32  # of an expert: up to here reading its weights once outweighs the speed of a dense product
BLOCK_BYTES = 4 * 2**20  # of weights made wide at a time, to stay in the cache


@dataclass(frozen=True)
class _Rows:
    """Rows that are computed together: those of `experts`, one expert after the other.

    bounds: rows bounds[i] .. bounds[i+1] are those of experts[i]. slots_M: their slots, token*K + choice.
    """

    experts: list[int]
    bounds: list[int]
    slots_M: Tensor
    tokens_M: Tensor

    @property
    def are_few(self) -> bool:
        """Whether no expert has more than `FEW_ROWS`."""
        return all(end - start <= FEW_ROWS for start, end in itertools.pairwise(self.bounds))

    def of_each(self) -> Iterator[tuple[int, slice]]:
        """Each expert with its rows."""
        for expert, (start, end) in zip(self.experts, itertools.pairwise(self.bounds), strict=True):
            yield expert, slice(start, end)


def expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_scales: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
) -> Tensor:
    """out_TD."""
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    out_TD = torch.zeros_like(hidden_TD, dtype=wide)
    weights_R = weights_TK.reshape(-1).to(wide)
    for rows in _rows(expert_ids_TK, up.shape[0]):
        x_MD = hidden_TD.index_select(0, rows.tokens_M).to(wide)
        h_MG = _linear(x_MD, up, up_scales, up_bias, rows)
        y_MD = _linear(_activate(h_MG, activation, gated), down, down_scales, down_bias, rows)
        out_TD.index_add_(0, rows.tokens_M, y_MD.mul_(weights_R.index_select(0, rows.slots_M)[:, None]))
    return out_TD.to(hidden_TD.dtype)


def expert_ffn_backward(
    grad_TD: Tensor,
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_scales: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_bias: Tensor | None,
    activation: str,
    gated: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden_TD and weights_TK.

    With s the routing weight of a row, dO its token's output gradient and dA = dO @ down:
    ds = <dA, a> + <dO, down_bias>, dh = s * dA * f'(h), dx = dh @ up; h is computed again.
    """
    wide = torch.promote_types(hidden_TD.dtype, torch.float32)
    d_hidden_TD = torch.zeros_like(hidden_TD, dtype=wide)
    weights_R = weights_TK.reshape(-1).to(wide)
    d_weights_R = torch.zeros_like(weights_R)
    for rows in _rows(expert_ids_TK, up.shape[0]):
        dO_MD = grad_TD.index_select(0, rows.tokens_M).to(wide)
        x_MD = hidden_TD.index_select(0, rows.tokens_M).to(wide)
        h_MG = _linear(x_MD, up, up_scales, up_bias, rows)
        dA_MF = _linear_backward(dO_MD, down, down_scales, rows)
        ds_M = (dA_MF * _activate(h_MG, activation, gated)).sum(dim=-1)
        if down_bias is not None:
            for expert, its in rows.of_each():
                ds_M[its] += (dO_MD[its] * down_bias[expert]).sum(dim=-1)
        d_weights_R[rows.slots_M] = ds_M
        dA_MF *= weights_R.index_select(0, rows.slots_M)[:, None]
        dh_MG = _activate_backward(dA_MF, h_MG, activation, gated)
        d_hidden_TD.index_add_(0, rows.tokens_M, _linear_backward(dh_MG, up, up_scales, rows))
    return d_hidden_TD.to(hidden_TD.dtype), d_weights_R.view(weights_TK.shape).to(weights_TK.dtype)


def _rows(expert_ids_TK: Tensor, num_experts: int) -> Iterator[_Rows]:
    """The rows of all experts that have few, together; then those of each that has many."""
    # In lists: with few rows sorting tensors would take longer than this.
    slots_of: dict[int, list[int]] = {}
    for slot, expert in enumerate(expert_ids_TK.reshape(-1).tolist()):
        if expert < num_experts:
            slots_of.setdefault(expert, []).append(slot)
    few = sorted(expert for expert, slots in slots_of.items() if len(slots) <= FEW_ROWS)
    many = sorted(slots_of.keys() - few)
    for experts in ([few] if few else []) + [[expert] for expert in many]:
        slots = [slot for expert in experts for slot in slots_of[expert]]
        bounds = [0, *itertools.accumulate(len(slots_of[expert]) for expert in experts)]
        slots_M = torch.tensor(slots)
        yield _Rows(experts, bounds, slots_M, slots_M // expert_ids_TK.shape[1])


def _linear(x_MK: Tensor, stored: Tensor, scales: Tensor, bias_EN: Tensor | None, rows: _Rows) -> Tensor:
    """out_MN[r] = weight[e] @ x_MK[r] + bias_EN[e] for each row r of expert e."""
    out_MN = x_MK.new_empty(x_MK.shape[0], stored.shape[1])
    is_done = rows.are_few and _compiled_linear(x_MK, stored, scales, rows, out_MN)
    for expert, its in rows.of_each():
        if not is_done:
            for columns, weight_BK in _blocks(stored[expert], scales[expert], x_MK.dtype):
                torch.mm(x_MK[its], weight_BK.T, out=out_MN[its, columns])
        if bias_EN is not None:
            out_MN[its] += bias_EN[expert]
    return out_MN


def _linear_backward(grad_MN: Tensor, stored: Tensor, scales: Tensor, rows: _Rows) -> Tensor:
    """out_MK[r] = grad_MN[r] @ weight[e] for each row r of expert e."""
    out_MK = grad_MN.new_zeros(grad_MN.shape[0], stored.shape[2] * 8 // BITS[stored.dtype])
    for expert, its in rows.of_each():
        for columns, weight_BK in _blocks(stored[expert], scales[expert], grad_MN.dtype):
            torch.addmm(out_MK[its], grad_MN[its, columns], weight_BK, out=out_MK[its])
    return out_MK


def _compiled_linear(x_MK: Tensor, stored: Tensor, scales: Tensor, rows: _Rows, out_MN: Tensor) -> bool:
    """out_MN without biases by the compiled kernel, which rounds x to 16 bits; False where it cannot."""
    kernels, columns = _kernels(), x_MK.shape[1]
    group = columns // scales.shape[2]
    if kernels is None or x_MK.dtype != torch.float32 or group % BLOCK:
        return False
    x_MK, stored, scales = x_MK.contiguous(), stored.contiguous(), scales.contiguous()
    experts = (ctypes.c_long * len(rows.experts))(*rows.experts)
    bounds = (ctypes.c_long * len(rows.bounds))(*rows.bounds)
    sizes = (BITS[stored.dtype], torch.get_num_threads(), len(rows.experts), stored.shape[1], columns, group)
    pointers = (stored.data_ptr(), scales.data_ptr(), x_MK.data_ptr(), out_MN.data_ptr())
    return kernels.quantised_linear(*sizes, experts, bounds, *pointers) == 0


def _blocks(stored_NK: Tensor, scales_NG: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight in `dtype`, some rows at a time; a block is overwritten by the next."""
    columns = stored_NK.shape[1] * 8 // BITS[stored_NK.dtype]
    count = max(1, BLOCK_BYTES // (columns * dtype.itemsize))
    wide_BK = torch.empty(min(count, stored_NK.shape[0]), columns, dtype=dtype)
    for start in range(0, stored_NK.shape[0], count):
        rows = slice(start, start + count)
        block_BK = wide_BK[: stored_NK[rows].shape[0]]
        if not _compiled_dequantise(stored_NK[rows], scales_NG[rows], block_BK):
            block_BK.copy_(dequantise(stored_NK[rows], scales_NG[rows], dtype))
        yield rows, block_BK


def _compiled_dequantise(stored_NK: Tensor, scales_NG: Tensor, out_NK: Tensor) -> bool:
    """out_NK = the weight in float32 by the compiled kernel; False where it cannot."""
    kernels, (rows, columns) = _kernels(), out_NK.shape
    group = columns // scales_NG.shape[1]
    if kernels is None or out_NK.dtype != torch.float32 or group % BLOCK:
        return False
    stored_NK, scales_NG = stored_NK.contiguous(), scales_NG.contiguous()
    sizes = (BITS[stored_NK.dtype], torch.get_num_threads(), rows, columns, group)
    kernels.dequantise(*sizes, stored_NK.data_ptr(), scales_NG.data_ptr(), out_NK.data_ptr())
    return True


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    library = compiled.load("quantised")
    if isinstance(library, str):
        return None
    integer, long, pointer = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
    library.quantised_linear.argtypes = [integer] * 2 + [long] * 4 + [pointer] * 6
    library.dequantise.argtypes = [integer] * 2 + [long] * 3 + [pointer] * 3
    return library


def _activate(h_MG: Tensor, activation: str, gated: bool) -> Tensor:
    if not gated:
        return activate(activation, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    return activate(activation, gate_MF) * value_MF


def _activate_backward(dA_MF: Tensor, h_MG: Tensor, activation: str, gated: bool) -> Tensor:
    if not gated:
        return activate_backward(activation, dA_MF, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    d_gate_MF = activate_backward(activation, dA_MF * value_MF, gate_MF)
    return torch.cat((d_gate_MF, dA_MF * activate(activation, gate_MF)), dim=-1)
