"""What is measured in every step, summed on the device and read only where a line of the history is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from moe_codegen.metrics import ExpertLoad, LoadCounts, load_summary
from moe_codegen.metrics.routing import load_entropy
from moe_codegen.modeling import MoEConfig

Gather = Callable[[torch.Tensor], torch.Tensor]  # a tensor of each process -> all of them, stacked

NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Reading:
    """What was measured since the reading before, over all processes.

    Attributes:
        steps: how many optimiser steps.
        losses: of a mixture `lm_loss`, the language model's part of the loss as a mean over optimiser steps, and
            `aux_loss` and `z_loss`, means over micro-batches; of a dense model nothing.
        load: tokens by language, layer and expert; None for a dense model.
        bad_step: the first optimiser step of the run whose loss was not finite, or None.
    """

    steps: int
    losses: dict[str, float]
    load: LoadCounts | None
    bad_step: int | None


class Meter:
    """Sums of the losses, counts of the experts, and the first step whose loss was not finite; all on the device."""

    def __init__(self, model: PreTrainedModel, languages: Sequence[str], device: torch.device) -> None:
        self._router_losses = torch.zeros(4, device=device)  # lm, aux, z, and how many micro-batches
        self._first_bad = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._steps: set[int] = set()
        self._load: ExpertLoad | None = None
        if isinstance(model.config, MoEConfig):
            config = model.config
            self._load = ExpertLoad(config.sparse_layers, config.num_experts, tuple(languages), device)

    @torch.no_grad()
    def add(
        self,
        step: int,
        outputs: Any,
        ids_LTK: Sequence[torch.Tensor],
        language_ids: torch.Tensor,
    ) -> None:
        """Note one micro-batch of optimiser step `step`.

        `outputs` are the model's, `ids_LTK` what `RoutingRecorder` has, `language_ids` (B, S), below 0 for padding.
        """
        self._steps.add(step)
        bad = ~torch.isfinite(outputs.loss.detach())
        self._first_bad = torch.where(bad, self._first_bad.clamp(max=step), self._first_bad)
        if self._load is not None:
            one = torch.ones_like(outputs.aux_loss)
            self._router_losses += torch.stack(
                [outputs.lm_loss, outputs.aux_loss.detach(), outputs.z_loss.detach(), one]
            )
            self._load.add(ids_LTK, counted_T=language_ids >= 0, group_T=language_ids.clamp(min=0))

    def read(self, gather: Gather) -> Reading:
        """What was added since the last reading; waits for the device."""
        bad_step, steps = self.bad_step(gather), len(self._steps)
        self._steps.clear()
        if self._load is None:
            return Reading(steps, {}, None, bad_step)
        lm, aux, z, micro_batches = gather(self._router_losses).sum(dim=0).tolist()
        # Each process's language-model loss is its share of the whole batch's; the router losses are means.
        losses = {"lm_loss": lm / steps, "aux_loss": aux / micro_batches, "z_loss": z / micro_batches}
        self._load.counts_2GLE = gather(self._load.counts_2GLE).sum(dim=0)
        counts = self._load.counts()
        self._router_losses.zero_()
        self._load.reset()
        return Reading(steps, losses, counts, bad_step)

    def bad_step(self, gather: Gather) -> int | None:
        """The first optimiser step of the run whose loss was not finite, or None; waits for the device."""
        first = int(gather(self._first_bad).amin())
        return None if first == NEVER else first


def load_figures(counts: LoadCounts) -> dict[str, float]:
    """Of the load, the numbers that fit a line: the worst layer's, and dead experts in all."""
    layers = load_summary(counts)["layers"]
    return {
        "load_evenness": min(layer["evenness"] for layer in layers),
        "load_max_over_mean": max(layer["max_over_mean"] for layer in layers),
        "load_concentration": float(concentration(counts).max()),
        "dead_experts": sum(layer["dead_experts"] for layer in layers),
    }


def concentration(counts: LoadCounts) -> np.ndarray:
    """(L,) how far each layer has gone from even routing, 0, to the same K experts for every token, 1.

    `(E - exp H) / (E - K)`, H the entropy of the load. `exp H` is the effective number of experts: E where the load is
    even, K where every token takes the same K.
    """
    chosen_LE = counts.chosen_GLE.sum(axis=0)
    experts, top_k = chosen_LE.shape[-1], round(counts.chosen_GLE.sum() / max(counts.first_GLE.sum(), 1))
    if experts == top_k:
        return np.zeros(len(chosen_LE))
    return (experts - np.exp(load_entropy(chosen_LE))) / (experts - top_k)
