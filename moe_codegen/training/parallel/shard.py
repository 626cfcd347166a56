"""A model spread over processes: its experts by expert parallelism, all of it by FSDP2 (torch's `fully_shard`)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from moe_codegen.architectures import ARCHITECTURES
from moe_codegen.modeling import MoEConfig
from moe_codegen.moe import Experts
from moe_codegen.moe.expert_parallel import spread
from moe_codegen.training.parallel.mesh import COPIES, EXPERTS, SHARDS, ProcessLayout


def shard_model(model: PreTrainedModel, layout: ProcessLayout, device: str) -> None:
    """Spread `model`, which every process holds whole, in place; afterwards it is on `device`.

    Its gradients are means over all processes, whichever way their weights are spread. Where `fsdp_size` is 1 the
    shards are whole copies, so that one mechanism reduces every gradient, experts' or not.
    """
    mesh = layout.dense_mesh(device)
    expert_mesh = layout.expert_mesh(device) if layout.ep_size > 1 else None
    for layer in layers_of(model):
        if expert_mesh is not None:
            for experts in [module for module in layer.modules() if isinstance(module, Experts)]:
                spread(experts, expert_mesh[EXPERTS])
                # Their first dimension is the experts, and spread already.
                fully_shard(experts, mesh=expert_mesh[COPIES, SHARDS], shard_placement_fn=lambda parameter: Shard(1))
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def reshard(model: nn.Module) -> None:
    """Let go of the weights that a forward pass without backward, such as a validation, has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def layers_of(model: PreTrainedModel) -> Iterable[nn.Module]:
    """The layers of a mixture, or of a dense model of a family that this library knows."""
    config = model.config
    architecture = config.architecture if isinstance(config, MoEConfig) else ARCHITECTURES[config.model_type]
    return model.get_submodule(architecture.layers).children()


class Sharded(nn.Module):
    """A model after `shard_model`, with the one method that DDP has and FSDP2 has under another name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's."""
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """A context whose gradients stay on their process, to be summed with those of the next micro-batch."""
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale sharded gradients down to the norm `max_norm` over all of them; returns the norm they had, as a scalar.

    torch's own function mixes no tensors of different meshes, and experts have a mesh of their own.
    """
    squares, gradients = [], []
    for mesh, group in by_mesh(parameter for parameter in parameters if parameter.grad is not None).items():
        mine = [parameter.grad.to_local() for parameter in group]
        copies = mesh.size(0)  # and the sum over all processes has every square once for each copy
        squares.append(get_total_norm(mine).square() / copies)
        gradients += mine
    square = torch.stack(squares).sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)  # as torch's clip_grad_norm_
    for gradient in gradients:
        gradient.mul_(scale)
    return norm


def by_mesh(parameters: Iterable[Any]) -> dict[DeviceMesh, list[Any]]:
    """The parameters of a sharded model, those of each mesh by themselves."""
    groups: defaultdict[DeviceMesh, list[Any]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.device_mesh].append(parameter)
    return groups
