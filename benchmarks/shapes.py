"""The expert layers that are measured, and their inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_codegen_kernels.records import ExpertWeights


@dataclass(frozen=True)
class LayerShape:
    """D model, F expert hidden, E experts, K top-k, and the kind of expert."""

    name: str
    model: int
    hidden: int
    experts: int
    top_k: int
    activation: str
    gated: bool
    bias: bool

    @property
    def grown(self) -> int:
        """G: rows of the up projection."""
        return 2 * self.hidden if self.gated else self.hidden

    def forward_flops(self, tokens: int) -> int:
        """Multiply-adds counted as two, of both products; backward costs twice as much again."""
        return 2 * tokens * self.top_k * self.model * (self.grown + self.hidden)

    def weights(self, dtype: torch.dtype, device: str) -> ExpertWeights[Tensor]:
        """Uninitialised: their memory is committed when first written."""

        def empty(*size: int) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        up_bias = empty(self.experts, self.grown) if self.bias else None
        down_bias = empty(self.experts, self.model) if self.bias else None
        up, down = empty(self.experts, self.grown, self.model), empty(self.experts, self.model, self.hidden)
        return ExpertWeights(up, up_bias, down, down_bias, self.activation, self.gated)

    def routing(self, tokens: int, load: str, device: str) -> tuple[Tensor, Tensor]:
        """expert_ids_TK and weights_TK: "balanced" draws experts alike, "zipf" with odds 1 / rank**1.5."""
        generator = torch.Generator().manual_seed(0)
        rank_E = torch.arange(1, self.experts + 1, dtype=torch.float64)
        odds_E = rank_E**-1.5 if load == "zipf" else torch.ones_like(rank_E)
        ids_TK = torch.multinomial(odds_E.expand(tokens, -1), self.top_k, generator=generator)
        weights_TK = torch.rand(tokens, self.top_k, generator=generator).softmax(dim=-1)
        return ids_TK.to(device), weights_TK.to(device)


SHAPES = {
    shape.name: shape
    for shape in (
        LayerShape("santacoder", 2048, 8192, 8, 2, "gelu_tanh", gated=False, bias=True),
        LayerShape("phi-2", 2560, 10240, 8, 2, "gelu_tanh", gated=False, bias=True),
        LayerShape("mixtral-8x7b", 4096, 14336, 8, 2, "silu", gated=True, bias=False),
        LayerShape("fine-grained", 2048, 1408, 64, 8, "silu", gated=True, bias=False),
    )
}
