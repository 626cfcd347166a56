"""The sparse layer that takes an FFN's place."""

import torch
from torch import nn
from transformers import PreTrainedConfig

from moe_codegen.architectures.architecture import FeedForward
from moe_codegen.moe.experts import Experts
from moe_codegen.moe.router import TopKRouter


class SparseMoE(nn.Module):
    """Token-routed experts in place of a dense FFN: `y = sum_k w_k expert_k(x)`.

    With `config.shared_expert` the dense FFN stays beside them as an expert that takes every token:
    `y = s shared(x) + (1 - s) sum_k w_k expert_k(x)`, `s = config.shared_expert_weight`. The two shares sum to one,
    so copies of one dense FFN still compute what it computed, with their weights unscaled.
    """

    def __init__(self, config: PreTrainedConfig, ffn: FeedForward, dense: nn.Module) -> None:
        super().__init__()
        self.gate = TopKRouter(config)
        self.experts = Experts(
            config,
            activation=getattr(config, ffn.activation),
            gated=ffn.gated,
            bias=ffn.has_bias(config),
        )
        self.shared_expert = dense if config.shared_expert else None
        self.shared_expert_weight = config.shared_expert_weight
        self.dropout = nn.Dropout(getattr(config, ffn.dropout)) if ffn.dropout else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states`: (B, S, D), the normed input of the FFN; returns the same shape and dtype."""
        x_TD = hidden_states.flatten(0, -2)
        routing = self.gate(x_TD)
        y_TD = self.experts(x_TD, routing.ids_TK, routing.weights_TK)
        y = self.dropout(y_TD.view_as(hidden_states))
        if self.shared_expert is not None:
            # The dense FFN brings its own dropout. Under autocast it answers in another dtype than the experts.
            y = torch.lerp(y, self.shared_expert(hidden_states).to(y.dtype), self.shared_expert_weight)
        return y
