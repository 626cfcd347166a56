"""Which experts took which token, recorded while a model runs.

Dimensions: T tokens, K experts per token, L sparse layers.
"""

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from moe_codegen.moe.router import Routing, TopKRouter


class RoutingRecorder:
    """A context in which each forward pass leaves its tokens' experts in `ids_LTK`, on the device and without waiting.

    Attributes:
        ids_LTK: for each sparse layer, from the first to the last, (T, K) int64 ids of the experts, the strongest
            first; empty before the first pass, and for a dense model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        self._latest: list[torch.Tensor | None] = [None] * len(self._routers)
        self._hooks: list[Any] = []

    @property
    def is_mixture(self) -> bool:
        """Whether the model has any router."""
        return bool(self._routers)

    @property
    def ids_LTK(self) -> list[torch.Tensor]:
        """See above."""
        return [ids_TK for ids_TK in self._latest if ids_TK is not None]

    @property
    def last_LK(self) -> list[list[int]]:
        """The experts of the last token; reading it waits for the device."""
        return [ids_TK[-1].tolist() for ids_TK in self.ids_LTK]

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
            self._latest[index] = routing.ids_TK

        return hook
