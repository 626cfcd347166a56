"""Routing: which experts a token goes to, and the order that puts an expert's rows together.

In torch's own operations, which any device without a kernel of its own runs, too, but for what is compiled for the CPU.
"""

import torch
from torch import Tensor

from moe_codegen_kernels.cpu import compiled
from moe_codegen_kernels.cpu.products import wide
from moe_codegen_kernels.records import RoutingPlan


def route(logits_TE: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """weights_TK in float32 or wider, expert_ids_TK int64."""
    scores_TE = torch.softmax(logits_TE, dim=-1, dtype=wide(logits_TE.dtype))
    weights_TK, expert_ids_TK = torch.topk(scores_TE, top_k, dim=-1)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK, expert_ids_TK


def routing_plan(expert_ids_TK: Tensor, num_experts: int) -> RoutingPlan:
    """By one compiled pass, or one stable sort, in few operations: each token waits for them in each layer."""
    ids_TK = expert_ids_TK.long().contiguous()
    if compiled.moves(ids_TK):
        return compiled.routing_plan(ids_TK, num_experts)
    sorted_R, order_R = ids_TK.clamp(max=num_experts).reshape(-1).sort(stable=True)
    device = sorted_R.device
    bounds_E = torch.arange(num_experts + 1, dtype=sorted_R.dtype, device=device)
    offsets_E = torch.searchsorted(sorted_R, bounds_E, out_int32=True)
    inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(order_R.numel(), device=device))
    return RoutingPlan(order_R.int(), inverse_R.int(), offsets_E)
