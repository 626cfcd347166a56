"""Which experts took which token, recorded while a model runs.

Dimensions: T tokens, K experts per token, L sparse layers.
"""

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_codegen.moe import Routing, TopKRouter


class RoutingRecorder:
    """A context in which each forward pass leaves the experts of its last token in `last_LK`.

    Attributes:
        last_LK: for each sparse layer, from the first to the last, the ids of the K experts, the strongest first;
            empty before the first pass, and for a dense model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        self._latest: list[torch.Tensor | None] = [None] * len(self._routers)
        self._hooks: list[Any] = []

    @property
    def is_mixture(self) -> bool:
        """Whether the model has any router."""
        return bool(self._routers)

    @property
    def last_LK(self) -> list[list[int]]:
        """See above; reading it waits for the device."""
        return [ids_K.tolist() for ids_K in self._latest if ids_K is not None]

    def __enter__(self) -> Self:
        for index, router in enumerate(self._routers):
            self._hooks.append(router.register_forward_hook(self._keep(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _keep(self, index: int) -> Any:
        def hook(module: nn.Module, arguments: Any, routing: Routing) -> None:
            self._latest[index] = routing.ids_TK[-1]

        return hook


def shares_of_experts(experts: Iterable[int]) -> dict[int, float]:
    """Expert -> the share of the tokens it took, the largest first; shares sum to one."""
    counts = Counter(experts)
    total = counts.total()
    return {expert: count / total for expert, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}
