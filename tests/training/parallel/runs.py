"""Ten optimiser steps on four micro-batches each, shared out among any number of processes."""

import contextlib

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from moe_codegen.training.parallel.shard import Sharded, clip_gradients, shard_model
from tests.modeling.mixture import mixture

STEPS, MICRO_BATCHES = 10, 4
DENSE = {
    "gpt_bigcode": dict(n_layer=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "phi": dict(num_hidden_layers=2),
}


def model_of(family):
    """The same mixture of distinct experts in every process."""
    return mixture(family, dense=DENSE[family]).train()


def micro_batch(index):
    """Two rows of different lengths, so that micro-batches count by their targets."""
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(5, 128, (2, 12), generator=generator)
    mask = torch.arange(12) < torch.randint(4, 13, (2, 1), generator=generator)
    return dict(input_ids=ids.where(mask, 1), attention_mask=mask.long(), labels=ids.where(mask, -100))


def rank_and_world():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wrapped(model, layout):
    """As the trainer has it: DDP where every process holds the whole model."""
    if layout.is_sharded:
        shard_model(model, layout, "cpu")
        return Sharded(model)
    return DistributedDataParallel(model) if layout.world_size > 1 else model


def accumulate(model, step):
    """Gradients of one optimiser step; the loss over all processes."""
    rank, world = rank_and_world()
    batches = [micro_batch(MICRO_BATCHES * step + index) for index in range(MICRO_BATCHES)]
    targets = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    mine = batches[rank::world]
    total = torch.zeros(())
    for batch in mine:
        waits = batch is not mine[-1] and world > 1
        with model.no_sync() if waits else contextlib.nullcontext():
            # Processes average their gradients, and this is a share of a sum.
            loss = model(**batch, num_items_in_batch=targets).loss
            (loss * world).backward()
        total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total.item()


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model, optimizer, steps):
    """The loss of each step."""
    losses = []
    for step in steps:
        losses.append(accumulate(model, step))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def losses_of(family, layout):
    model = wrapped(model_of(family), layout)
    return train(model, optimizer_of(model), range(STEPS))


def gradients_of(family, layout):
    """Name -> whole gradient of the first step, and the norm that clipping finds."""
    model = model_of(family)
    accumulate(wrapped(model, layout), 0)
    if not layout.is_sharded:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    else:
        norm = clip_gradients(model.parameters(), 0.1)
    whole = {
        name: parameter.grad.full_tensor() if layout.is_sharded else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return whole, norm.item()


def weights_held(family, layouts):
    """Layout -> how many weights of experts, and of everything else, are in this process."""
    held = {}
    for layout in layouts:
        experts, rest = [], []
        for name, parameter in wrapped(model_of(family), layout).named_parameters():
            (experts if ".experts." in name else rest).append(getattr(parameter, "_local_tensor", parameter).numel())
        held[layout] = sum(experts), sum(rest)
    return held


def each_layout(family, layouts):
    """Layout -> losses and gradients, in this process."""
    return {layout: (losses_of(family, layout), gradients_of(family, layout)) for layout in layouts}
