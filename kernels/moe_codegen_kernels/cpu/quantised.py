"""Quantised experts on the CPU: few rows by the compiled kernel, many by blocks of the weight made wide again.

Everything is computed in float32 (float64 for float64): its products run at three to six times the speed of bfloat16's
on a processor without bfloat16 instructions, and beside the weights the activations are small.

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k; M rows of one expert.
"""

import ctypes
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from moe_codegen_kernels.activations import activate, activate_backward
from moe_codegen_kernels.cpu import compiled
from moe_codegen_kernels.quantised_weights import BITS, BLOCK, dequantise

FEW_ROWS = 32  # up to here reading the weights once outweighs the speed of a dense product
BLOCK_BYTES = 4 * 2**20  # of weights made wide at a time, to stay in the cache


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
    for expert, slots_M, tokens_M in _touched(expert_ids_TK, up.shape[0]):
        x_MD = hidden_TD.index_select(0, tokens_M).to(wide)
        h_MG = _linear(x_MD, up[expert], up_scales[expert], up_bias, expert)
        y_MD = _linear(_activate(h_MG, activation, gated), down[expert], down_scales[expert], down_bias, expert)
        out_TD.index_add_(0, tokens_M, y_MD.mul_(weights_R.index_select(0, slots_M)[:, None]))
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
    for expert, slots_M, tokens_M in _touched(expert_ids_TK, up.shape[0]):
        dO_MD = grad_TD.index_select(0, tokens_M).to(wide)
        x_MD = hidden_TD.index_select(0, tokens_M).to(wide)
        h_MG = _linear(x_MD, up[expert], up_scales[expert], up_bias, expert)
        dA_MF = _linear_backward(dO_MD, down[expert], down_scales[expert])
        ds_M = (dA_MF * _activate(h_MG, activation, gated)).sum(dim=-1)
        if down_bias is not None:
            ds_M += (dO_MD * down_bias[expert]).sum(dim=-1)
        d_weights_R[slots_M] = ds_M
        dA_MF *= weights_R.index_select(0, slots_M)[:, None]
        dh_MG = _activate_backward(dA_MF, h_MG, activation, gated)
        d_hidden_TD.index_add_(0, tokens_M, _linear_backward(dh_MG, up[expert], up_scales[expert]))
    return d_hidden_TD.to(hidden_TD.dtype), d_weights_R.view(weights_TK.shape).to(weights_TK.dtype)


def _touched(expert_ids_TK: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each expert that has rows, with its slots (token*K + choice) and their tokens."""
    # Lists: with few rows sorting tensors would take longer than this.
    slots_of: dict[int, list[int]] = {}
    for slot, expert in enumerate(expert_ids_TK.reshape(-1).tolist()):
        slots_of.setdefault(expert, []).append(slot)
    for expert in sorted(slots_of):
        if expert < num_experts:
            slots_M = torch.tensor(slots_of[expert])
            yield expert, slots_M, slots_M // expert_ids_TK.shape[1]


def _linear(x_MK: Tensor, stored_NK: Tensor, scales_NG: Tensor, bias_EN: Tensor | None, expert: int) -> Tensor:
    """x_MK @ weight_NK.T + bias_EN[expert]."""
    out_MN = x_MK.new_empty(x_MK.shape[0], stored_NK.shape[0])
    if not (x_MK.shape[0] <= FEW_ROWS and _Weight(stored_NK, scales_NG).linear_compiled(x_MK, out_MN)):
        for rows, weight_BK in _blocks(stored_NK, scales_NG, x_MK.dtype):
            torch.mm(x_MK, weight_BK.T, out=out_MN[:, rows])
    return out_MN if bias_EN is None else out_MN.add_(bias_EN[expert])


def _linear_backward(grad_MN: Tensor, stored_NK: Tensor, scales_NG: Tensor) -> Tensor:
    """grad_MN @ weight_NK."""
    out_MK = grad_MN.new_zeros(grad_MN.shape[0], stored_NK.shape[1] * 8 // BITS[stored_NK.dtype])
    for rows, weight_BK in _blocks(stored_NK, scales_NG, grad_MN.dtype):
        torch.addmm(out_MK, grad_MN[:, rows], weight_BK, out=out_MK)
    return out_MK


def _blocks(stored_NK: Tensor, scales_NG: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weight in `dtype`, some rows at a time; a block is overwritten by the next."""
    columns = stored_NK.shape[1] * 8 // BITS[stored_NK.dtype]
    count = max(1, BLOCK_BYTES // (columns * dtype.itemsize))
    wide_BK = torch.empty(min(count, stored_NK.shape[0]), columns, dtype=dtype)
    for start in range(0, stored_NK.shape[0], count):
        rows = slice(start, start + count)
        weight = _Weight(stored_NK[rows], scales_NG[rows])
        block_BK = wide_BK[: weight.rows]
        if not weight.dequantise_compiled(block_BK):
            block_BK.copy_(dequantise(weight.stored_NK, weight.scales_NG, dtype))
        yield rows, block_BK


class _Weight:
    """A stored matrix as the compiled kernels take it. Their calls answer whether they could."""

    def __init__(self, stored_NK: Tensor, scales_NG: Tensor) -> None:
        self.stored_NK, self.scales_NG = stored_NK.contiguous(), scales_NG.contiguous()
        self.bits = BITS[stored_NK.dtype]
        self.rows, self.columns = stored_NK.shape[0], stored_NK.shape[1] * 8 // self.bits
        self.group = self.columns // scales_NG.shape[1]

    def linear_compiled(self, x_MK: Tensor, out_MN: Tensor) -> bool:
        """out_MN = x_MK @ weight_NK.T, x rounded to 16 bits; for few rows."""
        kernels = _kernels()
        if kernels is None or x_MK.dtype != torch.float32 or self.group % BLOCK:
            return False
        x_MK = x_MK.contiguous()
        sizes = (self.bits, torch.get_num_threads(), x_MK.shape[0], self.rows, self.columns, self.group)
        weight = (self.stored_NK.data_ptr(), self.scales_NG.data_ptr())
        return kernels.quantised_linear(*sizes, *weight, x_MK.data_ptr(), out_MN.data_ptr()) == 0

    def dequantise_compiled(self, out_NK: Tensor) -> bool:
        """out_NK = the weight in float32."""
        kernels = _kernels()
        if kernels is None or out_NK.dtype != torch.float32 or self.group % BLOCK:
            return False
        sizes = (self.bits, torch.get_num_threads(), self.rows, self.columns, self.group)
        kernels.dequantise(*sizes, self.stored_NK.data_ptr(), self.scales_NG.data_ptr(), out_NK.data_ptr())
        return True


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    library = compiled.load("quantised")
    if isinstance(library, str):
        return None
    integer, long, pointer = ctypes.c_int, ctypes.c_long, ctypes.c_void_p
    library.quantised_linear.argtypes = [integer] * 2 + [long] * 4 + [pointer] * 4
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
