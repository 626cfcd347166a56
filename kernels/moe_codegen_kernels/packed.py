"""Experts packed for inference on the CPU: the same numbers, in the order in which the compiled kernel reads them.

    packed[e, p, k, j] = W_e[p * P + j, k]          P = panel_width(), columns that are summed side by side
    bfloat16: of each two k, column by column, so that a word of 32 bits holds W_e[p * P + j, k] and [.., k + 1]

As many bytes as before, and of the same dtype; which processor packed decides P, so what is saved is the plain order.

    T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k; N x K a matrix.
"""

import torch
from torch import Tensor

from moe_codegen_kernels import cpu
from moe_codegen_kernels.cpu.compiled import panel_width, torch_is_faster


def why_not_packed(matrices_ENK: Tensor) -> str | None:
    """Why packing these would not help, or could not be done, as a clause; None where it does."""
    panel, dtype = panel_width(), matrices_ENK.dtype
    if matrices_ENK.device.type != "cpu":
        return f"are on {matrices_ENK.device}, and packing is for the processor"
    if panel == 0:
        return f"run through {cpu.describe_cpu_path()}, which reads plain weights"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"are {dtype}; float32, bfloat16 and float16 can be packed"
    if torch_is_faster(dtype):
        return f"are {dtype}, of which torch multiplies plain ones faster on this processor"
    if matrices_ENK.shape[1] % panel or matrices_ENK.shape[2] % panel:
        return f"are of shape {tuple(matrices_ENK.shape)}, no multiple of the panel's {panel}"
    return None


def pack_matrices(matrices_ENK: Tensor) -> Tensor:
    """(E, N / P, K, P), an expert at a time."""
    experts, rows, columns = matrices_ENK.shape
    panel = panel_width()
    packed = matrices_ENK.new_empty(experts, rows // panel, columns, panel)
    for matrix_NK, target in zip(matrices_ENK, packed, strict=True):
        _plain_view(target).copy_(matrix_NK.view(-1, panel, columns // 2, 2))
    return packed


def unpack_matrices(packed: Tensor) -> Tensor:
    """The (E, N, K) that `pack_matrices` was given."""
    experts, panels, columns, panel = packed.shape
    matrices_ENK = packed.new_empty(experts, panels * panel, columns)
    for source, matrix_NK in zip(packed, matrices_ENK, strict=True):
        matrix_NK.view(-1, panel, columns // 2, 2).copy_(_plain_view(source))
    return matrices_ENK


def _plain_view(packed: Tensor) -> Tensor:
    """One expert's panels (N / P, K, P), seen as (N / P, P, K / 2, 2): panel, column, pair of k, k."""
    panels, columns, panel = packed.shape
    if packed.dtype == torch.bfloat16:
        return packed.view(panels, columns // 2, panel, 2).transpose(1, 2)
    return packed.view(panels, columns // 2, 2, panel).permute(0, 3, 1, 2)


def packed_expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    *,
    activation: str,
    gated: bool,
) -> Tensor:
    """`expert_ffn` without gradients, `up` and `down` being `pack_matrices` of its own; hidden_TD of their dtype."""
    if up.dim() != 4 or down.dim() != 4:
        raise ValueError(
            f"up {tuple(up.shape)} and down {tuple(down.shape)} are not packed; expected what pack_matrices returns"
        )
    if up.shape[2] != hidden_TD.shape[1] or down.dtype != hidden_TD.dtype or up.dtype != hidden_TD.dtype:
        raise ValueError(
            f"hidden_TD is {hidden_TD.dtype} of {hidden_TD.shape[1]} columns; "
            f"up is {up.dtype} for {up.shape[2]}, down is {down.dtype}: expected the same"
        )
    out_TD, *_ = torch.ops.moe_codegen.expert_ffn(
        hidden_TD, expert_ids_TK, weights_TK, up, up_bias, down, down_bias, activation, gated, False, False
    )
    return out_TD
