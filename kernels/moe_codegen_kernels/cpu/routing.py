"""Routing on the CPU: which experts a token goes to, and the order that puts the rows of one expert together."""

import torch
from torch import Tensor

from moe_codegen_kernels.cpu.products import wide


def route(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """weights_TK in float32 or wider, expert_ids_TK int64."""
    scores_TE = torch.softmax(logits_TE, dim=-1, dtype=wide(logits_TE.dtype))
    weights_TK, expert_ids_TK = torch.topk(scores_TE, top_k, dim=-1)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK, expert_ids_TK


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """order_R, inverse_R and offsets_E of the ids, by one stable sort."""
    ids_R = expert_ids_TK.reshape(-1).clamp(max=num_experts)
    order_R = torch.argsort(ids_R, stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), dtype=order_R.dtype)
    counts_E = torch.bincount(ids_R, minlength=num_experts + 1)[:num_experts]
    offsets_E = torch.zeros(num_experts + 1, dtype=torch.int32)
    offsets_E[1:] = counts_E.cumsum(0)
    return order_R.int(), inverse_R.int(), offsets_E
