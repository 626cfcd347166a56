"""Weights of 8 or 4 bits: what is stored for a matrix, and the way there and back.

    weight[n, k] ~ scales[n, k // group] * q[n, k],   q in -2**(bits-1) .. 2**(bits-1) - 1

q is symmetric around 0, so that a weight of 0 stays 0. The scale maps a group's value of largest magnitude, sign
included, to the lowest q, which uses the whole range (it may therefore be negative). It is rounded to bfloat16 before
q is chosen: keeping it in bfloat16 then costs nothing.

    8 bits  int8   (..., N, K)      one group for a row unless asked otherwise
    4 bits  uint8  (..., N, K / 2)  32 values in 16 bytes: value i in the low half of byte i, i + 16 in its high half
    scales  bf16   (..., N, K / group)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # values that 4-bit storage keeps together
STORED = {8: torch.int8, 4: torch.uint8}
BITS = {dtype: bits for bits, dtype in STORED.items()}
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Quantised:
    """A matrix, or several, as `quantise_weight` stores it."""

    stored: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights: (..., N, K)."""
        return (*self.stored.shape[:-1], self.stored.shape[-1] * 8 // BITS[self.stored.dtype])

    @property
    def group(self) -> int:
        """Values of a row that share a scale."""
        return self.shape[-1] // self.scales.shape[-1]

    def __getitem__(self, index: int | slice | Tensor) -> "Quantised":
        """Of the first dimension: some matrices, or some rows of one."""
        return Quantised(self.stored[index], self.scales[index])

    def contiguous(self) -> "Quantised":
        """The same, each row's bytes and scales behind those of the one before."""
        return Quantised(self.stored.contiguous(), self.scales.contiguous())

    def to(self, dtype: torch.dtype) -> Tensor:
        """The weights in `dtype`."""
        return dequantise(self.stored, self.scales, dtype)


def quantise_weight(weight: Tensor, bits: int, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Round `weight` to `bits` bits with a scale for each `group_size` values of a row.

    weight: (..., N, K) of any float dtype; a few rows at a time are widened to float32. bits: 8 or 4.
    group_size: divides K, with 4 bits a multiple of 32; None is the whole row. Returns (stored, scales) as above.
    Raises ValueError for other bits or groups, and for weights that are not finite.
    """
    group = check_group(weight.shape[-1], bits, group_size)
    rows = weight.reshape(-1, weight.shape[-1])
    stored = torch.empty(rows.shape[0], rows.shape[1] * bits // 8, dtype=STORED[bits], device=weight.device)
    scales = torch.empty(rows.shape[0], rows.shape[1] // group, dtype=torch.bfloat16, device=weight.device)
    for some in _slices(rows.shape[0]):
        scales[some] = scales_of(rows[some], bits, group)
        stored[some] = round_to(rows[some], scales[some], bits)
    return stored.view(*weight.shape[:-1], -1), scales.view(*weight.shape[:-1], -1)


def scales_of(weight_NK: Tensor, bits: int, group_size: int) -> Tensor:
    """The bf16 scale of each group: its value of largest magnitude over -2**(bits-1)."""
    groups_NGg = weight_NK.unflatten(-1, (-1, group_size)).float()
    low_NG, high_NG = groups_NGg.aminmax(dim=-1)
    extreme_NG = torch.where(-low_NG > high_NG, low_NG, high_NG)
    if not torch.isfinite(extreme_NG).all():
        raise ValueError("a weight is NaN or infinite and cannot be quantised; repair the checkpoint it is from")
    return (extreme_NG / -(2 ** (bits - 1))).bfloat16()


def round_to(weight_NK: Tensor, scales_NG: Tensor, bits: int) -> Tensor:
    """The nearest q of each weight, as it is stored."""
    groups_NGg = weight_NK.unflatten(-1, (scales_NG.shape[-1], -1)).float()
    scales_NG1 = scales_NG.float()[..., None]
    q_NGg = (groups_NGg / torch.where(scales_NG1 == 0, 1, scales_NG1)).round_()
    q_NK = q_NGg.clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).flatten(-2).to(torch.int8)
    return q_NK if bits == 8 else _pack(q_NK)


def dequantise(stored: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(..., N, K) in `dtype`: each q times its group's scale, in float32 or wider."""
    q = _unpack(stored) if stored.dtype == STORED[4] else stored
    groups = q.unflatten(-1, (scales.shape[-1], -1)).to(torch.promote_types(dtype, torch.float32))
    return groups.mul_(scales[..., None]).flatten(-2).to(dtype)


def check_group(columns: int, bits: int, group_size: int | None) -> int:
    """The group size for rows of `columns`; ValueError where bits or group cannot be."""
    if bits not in STORED:
        raise ValueError(f"bits={bits} is not supported; use 8 or 4")
    if bits == 4 and columns % BLOCK:
        raise ValueError(
            f"rows of {columns} are no multiple of {BLOCK}, in which 4-bit weights are stored; use 8 bits for them"
        )
    group = columns if group_size is None else group_size
    if group < 1 or columns % group:
        fits = math.gcd(columns, 128)
        raise ValueError(f"group_size={group} does not divide rows of {columns}; choose one that does, such as {fits}")
    if bits == 4 and group % BLOCK:
        raise ValueError(
            f"group_size={group} is no multiple of {BLOCK}, in which 4-bit weights are stored; use 32 to 128"
        )
    return group


def _pack(q_NK: Tensor) -> Tensor:
    low, high = q_NK.unflatten(-1, (-1, 2, BLOCK // 2)).unbind(-2)
    return ((low & 15) | (high << 4)).flatten(-2).view(torch.uint8)


def _unpack(stored: Tensor) -> Tensor:
    blocks = stored.view(torch.int8).unflatten(-1, (-1, BLOCK // 2))
    return torch.stack(((blocks << 4) >> 4, blocks >> 4), dim=-2).flatten(-3)


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE))
