"""Expert parallelism: a layer's experts spread over the ranks of a group, each of which has tokens of its own.

    dispatch   routed rows sorted by expert -> all-to-all -> the rows of this rank's experts, whoever's tokens they are
    run        this rank's experts, one to a row, with weight 1
    combine    all-to-all back -> each token's rows weighed and summed, in float32, on the rank it came from

Backward walks the same road the other way. An expert's gradient is the mean over the ranks of the group, as that of any
other weight is under data parallelism. In a layer the host reads one thing from the device: how many rows go to each
rank and come from it, without which it cannot size a buffer.

T tokens, D model, E experts, K experts per token, R = T*K routed rows;
P ranks, L = E/P experts on each, rank p holding p*L .. (p+1)*L; N rows received.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from moe_codegen.moe.experts import Experts
from moe_codegen_kernels import combine, gather, routing_plan
from moe_codegen_kernels.autocast import autocast_dtype

# (hidden_TD, ids_TK, weights_TK) -> out_TD
RunExperts = Callable[[Tensor, Tensor, Tensor], Tensor]


def spread(experts: Experts, mesh: DeviceMesh) -> None:
    """Keep of `experts`, whole and the same on every rank, this rank's E/P, as DTensors that know of all E.

    From here on all P ranks of the one-dimensional `mesh` must run the layer, forward and backward, equally often.
    P must divide E.
    """
    for name, parameter in list(experts.named_parameters()):
        mine = parameter.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
        shard = DTensor.from_local(mine, mesh, [Shard(0)], run_check=False)
        setattr(experts, name, nn.Parameter(shard, requires_grad=parameter.requires_grad))
    experts.num_experts //= mesh.size()
    experts.across_ranks = AcrossRanks(experts, mesh.get_group())


class AcrossRanks:
    """Runs the experts of one layer, some of which are on other ranks."""

    def __init__(self, experts: Experts, group: dist.ProcessGroup) -> None:
        self.parameters: dict[str, Any] = experts._parameters  # a dictionary that PEFT and FSDP2 put others into
        self.num_local_experts = experts.num_experts
        self.group = group

    def __call__(self, run_experts: RunExperts, hidden_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """What `run_experts(hidden_TD, ids_TK, weights_TK)` would give if this rank held all experts.

        Args:
            run_experts: runs this rank's experts, numbered from 0.
            hidden_TD: (T, D); T may differ between ranks, and be 0.
            ids_TK: (T, K) int in 0 .. E - 1.
            weights_TK: (T, K), best float32.
        """
        plan = routing_plan(ids_TK, self.group.size() * self.num_local_experts)
        sent_dtype = autocast_dtype(hidden_TD) or hidden_TD.dtype  # in which the experts will compute
        x_RD = gather(hidden_TD.to(sent_dtype), plan, ids_TK.shape[1])
        sent_PL = plan.offsets_E.diff().view(self.group.size(), self.num_local_experts)
        received_PL = torch.empty_like(sent_PL)
        dist.all_to_all_single(received_PL, sent_PL, group=self.group)
        sent, received = torch.stack((sent_PL.sum(dim=1), received_PL.sum(dim=1))).tolist()

        x_ND = _AllToAll.apply(x_RD, received, sent, self.group)
        ids_N = torch.arange(self.num_local_experts, device=ids_TK.device).repeat(self.group.size())
        ids_N = ids_N.repeat_interleave(received_PL.flatten(), output_size=sum(received))
        with self._local_parameters():
            y_ND = _run_rows(run_experts, x_ND, ids_N)

        y_RD = _AllToAll.apply(y_ND, sent, received, self.group)
        return combine(y_RD, weights_TK, plan).to(hidden_TD.dtype)

    @contextmanager
    def _local_parameters(self) -> Iterator[None]:
        """The parameters as this rank's plain tensors, which is what every implementation of the experts knows."""
        sharded = dict(self.parameters)
        self.parameters.update({name: self._local(parameter) for name, parameter in sharded.items()})
        try:
            yield
        finally:
            self.parameters.update(sharded)

    def _local(self, parameter: DTensor) -> Tensor:
        local = parameter.to_local()
        if local.requires_grad:
            # A sum over the tokens of P ranks, where data parallelism takes the mean over ranks.
            local.register_hook(lambda gradient: gradient / self.group.size())
        return local


def _run_rows(run_experts: RunExperts, x_ND: Tensor, ids_N: Tensor) -> Tensor:
    """Each row through its expert. A rank without rows runs one of zeros, so that its experts have gradients too."""
    rows = x_ND.shape[0]
    if rows == 0:
        x_ND, ids_N = F.pad(x_ND, (0, 0, 0, 1)), F.pad(ids_N, (0, 1))
    weights_N1 = torch.ones(ids_N.shape[0], 1, device=x_ND.device)
    return run_experts(x_ND, ids_N[:, None], weights_N1)[:rows]


class _AllToAll(torch.autograd.Function):
    """The first `sent[0]` rows to rank 0, the next `sent[1]` to rank 1, ...; what came, rank by rank."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.splits, ctx.group = (received, sent), group
        out_ND = rows_RD.new_empty(sum(received), rows_RD.shape[1])
        dist.all_to_all_single(out_ND, rows_RD.contiguous(), received, sent, group=group)
        return out_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None]:
        received, sent = ctx.splits
        return _AllToAll.apply(grad_ND, sent, received, ctx.group), None, None, None
