"""How many tokens each expert took, counted on the device while a model runs, without waiting for it.

Dimensions: T tokens, K experts per token, E experts, L sparse layers, G groups of tokens (such as languages).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from transformers import PreTrainedModel

from moe_codegen.errors import ConfigError
from moe_codegen.modeling import MoEConfig


@dataclass(frozen=True)
class LoadCounts:
    """Counts on the host, int64.

    Attributes:
        groups: names of the groups.
        layers: numbers of the sparse layers.
        chosen_GLE: tokens for which an expert was among the K chosen; a row sums to K times the group's tokens.
        first_GLE: tokens for which it was the strongest; a row sums to the group's tokens.
    """

    groups: tuple[str, ...]
    layers: tuple[int, ...]
    chosen_GLE: np.ndarray
    first_GLE: np.ndarray


class ExpertLoad:
    """Counts of (group, layer, expert), added up over as many passes as wanted.

    Feed it what `RoutingRecorder` records.

    Attributes:
        counts_2GLE: int64 on the device: any choice, then first choice. Processes that saw different tokens may sum it
            with `torch.distributed.all_reduce`.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_experts: int,
        groups: Sequence[str] = ("all",),
        device: torch.device | str | None = None,
    ) -> None:
        self.layers, self.groups = tuple(layers), tuple(groups)
        self.counts_2GLE = torch.zeros(
            2, len(self.groups), len(self.layers), num_experts, dtype=torch.int64, device=device
        )

    @classmethod
    def of_model(cls, model: PreTrainedModel, groups: Sequence[str] = ("all",)) -> Self:
        """Counters for the sparse layers of one of our mixtures. Raises `ConfigError` for a dense model."""
        if not isinstance(model.config, MoEConfig):
            raise ConfigError("a dense model routes nothing; give a mixture")
        return cls(model.config.sparse_layers, model.config.num_experts, groups, model.device)

    def add(
        self,
        ids_LTK: Sequence[torch.Tensor],
        counted_T: torch.Tensor | None = None,
        group_T: torch.Tensor | None = None,
    ) -> None:
        """Count the experts of one pass.

        Args:
            ids_LTK: for each sparse layer (T, K) int64, the strongest expert first.
            counted_T: (T,) bool, false for padding; any shape of T elements, so that an attention mask will do.
            group_T: (T,) int64, each token's place in `groups`; None for the first. Any shape of T elements.

        Raises:
            ConfigError: another number of layers than counted here.
        """
        if len(ids_LTK) != len(self.layers):
            raise ConfigError(f"routing of {len(ids_LTK)} layers was given, and {len(self.layers)} are counted")
        device = self.counts_2GLE.device
        num_layers, num_experts = self.counts_2GLE.shape[2:]
        counted = None if counted_T is None else counted_T.reshape(-1).to(device, torch.int64, non_blocking=True)
        group = 0 if group_T is None else group_T.reshape(-1, 1).to(device, non_blocking=True)
        for layer, layer_ids_TK in enumerate(ids_LTK):
            ids_TK = layer_ids_TK.detach().to(device, non_blocking=True)
            tokens, top_k = ids_TK.shape
            ones_T = torch.ones(tokens, dtype=torch.int64, device=device) if counted is None else counted
            place_TK = (group * num_layers + layer) * num_experts + ids_TK
            any_GLE, first_GLE = self.counts_2GLE.view(2, -1)
            any_GLE.index_add_(0, place_TK.reshape(-1), ones_T.repeat_interleave(top_k, output_size=tokens * top_k))
            first_GLE.index_add_(0, place_TK[:, 0], ones_T)

    def reset(self) -> None:
        """Start again from zero."""
        self.counts_2GLE.zero_()

    def counts(self) -> LoadCounts:
        """What was counted so far; the one place that waits for the device."""
        chosen, first = self.counts_2GLE.cpu().numpy().copy()  # on the CPU it would change with the next pass
        return LoadCounts(self.groups, self.layers, chosen, first)
