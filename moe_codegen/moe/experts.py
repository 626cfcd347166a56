"""The experts: E feed-forward networks as 3-D parameters, run by whichever implementation the model is set to.

Dimensions: T tokens, D model, F expert hidden, E experts, K experts per token.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation


@use_experts_implementation
class _ExpertLoop(nn.Module):
    """The plain loop over experts, `experts_implementation="eager"`: the meaning every other one must match."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    act_fn: nn.Module
    _apply_gate: Callable[[torch.Tensor], torch.Tensor]  # transformers' decorator adds it

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run the experts on the tokens routed to them.

        Args:
            hidden_states: (T, D).
            top_k_index: (T, K) int; an id equal to E (expert parallelism's sentinel) contributes nothing.
            top_k_weights: (T, K); outputs are summed in its dtype, fp32, and cast once at the end.

        Returns:
            (T, D) in the dtype of `hidden_states`.
        """
        inner = "gate_up_proj" if self.has_gate else "up_proj"
        sum_TD = torch.zeros_like(hidden_states, dtype=top_k_weights.dtype)
        for expert in range(self.num_experts):
            token_R, choice_R = torch.where(top_k_index == expert)
            h_RF = F.linear(hidden_states[token_R], *self._of(inner, expert))
            a_RF = self._apply_gate(h_RF) if self.has_gate else self.act_fn(h_RF)
            y_RD = F.linear(a_RF, *self._of("down_proj", expert))
            weight_R1 = top_k_weights[token_R, choice_R, None]
            sum_TD = sum_TD.index_add(0, token_R, y_RD.to(sum_TD.dtype) * weight_R1)
        return sum_TD.to(hidden_states.dtype)

    def _of(self, name: str, expert: int) -> list[torch.Tensor]:
        """The expert's weight, and its bias if it has one. Read anew: PEFT swaps parameters while a model runs."""
        names = [name, f"{name}_bias"] if self.has_bias else [name]
        return [getattr(self, each)[expert] for each in names]


class Experts(_ExpertLoop):
    """E ungated experts `down(act(up(x)))`, or gated ones `down(act(gate(x)) * up(x))`.

    Parameters (names and shapes are those of transformers' own MoE models):
        up_proj (E, F, D), or gated gate_up_proj (E, 2F, D) with the gate's rows first;
        down_proj (E, D, F); with biases also up_proj_bias (E, F) or gate_up_proj_bias (E, 2F), down_proj_bias (E, D).
    """

    def __init__(self, config: PreTrainedConfig, *, activation: str, gated: bool, bias: bool) -> None:
        super().__init__(config)
        # The decorator fixes these for a class; in ours they depend on the family.
        self.has_gate, self.has_bias = gated, bias
        self.num_experts = config.num_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.act_fn = ACT2FN[activation]
        self._add(
            "gate_up_proj" if gated else "up_proj",
            (2 if gated else 1) * self.intermediate_dim,
            self.hidden_dim,
        )
        self._add("down_proj", self.hidden_dim, self.intermediate_dim)
        self.across_ranks: Callable[..., torch.Tensor] | None = None  # set by `expert_parallel.spread`

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As the loop over experts has it, by whichever implementation is set, on whichever ranks the experts are."""
        run_experts = super().forward
        if self.across_ranks is None:
            return run_experts(hidden_states, top_k_index, top_k_weights)
        return self.across_ranks(run_experts, hidden_states, top_k_index, top_k_weights)

    def _add(self, name: str, rows: int, columns: int) -> None:
        setattr(self, name, nn.Parameter(torch.empty(self.num_experts, rows, columns)))
        if self.has_bias:
            setattr(self, f"{name}_bias", nn.Parameter(torch.empty(self.num_experts, rows)))
