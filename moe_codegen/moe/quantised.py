"""The experts with weights of 8 or 4 bits, run by `quantised_expert_ffn` whatever implementation the model is set to.

Dimensions: T tokens, D model, K experts per token.
"""

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from moe_codegen.errors import ConfigError
from moe_codegen.moe.experts import Experts
from moe_codegen.moe.implementation import activation_of
from moe_codegen_kernels import ACTIVATIONS, quantised_expert_ffn
from moe_codegen_kernels.quantised_weights import STORED, check_group

SCALES = "_scales"  # what follows a weight's name in that of its scales


class QuantisedExperts(nn.Module):
    """`Experts` as they are stored in 8 or 4 bits; frozen, with gradients for what comes before them.

    Parameters: those of `Experts` under their names, the weights in the layout of `quantise_weight`, and beside each
    weight its scales, such as `up_proj_scales`, in bfloat16.
    """

    def __init__(self, experts: Experts, bits: int, group_size: int | None) -> None:
        """Empty ones in the place of `experts`; ConfigError where they or their sizes do not allow it."""
        super().__init__()
        self.num_experts, self.has_gate, self.has_bias = experts.num_experts, experts.has_gate, experts.has_bias
        self.bits = bits
        self.activation = activation_of(experts)
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"experts with the activation {self.activation} cannot be quantised")
        for name, parameter in experts.named_parameters():
            if name.endswith("_bias"):
                self._add(name, parameter)
                continue
            *rows, columns = parameter.shape
            try:
                group = check_group(columns, bits, group_size)
            except ValueError as error:
                raise ConfigError(f"{name} {tuple(parameter.shape)}: {error}") from None
            self._add(name, parameter.new_empty(*rows, columns * bits // 8, dtype=STORED[bits]))
            self._add(name + SCALES, parameter.new_empty(*rows, columns // group, dtype=torch.bfloat16))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """As `Experts.forward`: (T, D), (T, K), (T, K) -> (T, D)."""
        inner = "gate_up_proj" if self.has_gate else "up_proj"
        return quantised_expert_ffn(
            hidden_states,
            top_k_index,
            top_k_weights,
            *self._of(inner),
            *self._of("down_proj"),
            activation=self.activation,
            gated=self.has_gate,
        )

    def await_weights(self, dtype: torch.dtype) -> None:
        """Have weights of `dtype` until theirs are loaded: it is what these are read in before they are rounded."""
        for name, parameter in list(self.named_parameters()):
            if parameter.dtype in STORED.values():
                self._add(name, parameter.to(dtype))

    def freeze(self) -> None:
        """Whoever loads parameters makes those of float dtypes trainable."""
        self.requires_grad_(False)

    def _of(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Weight, scales and bias.

        Casting a model casts its scales too. Casting them back loses nothing, except from float16, which rounds scales
        below 6e-5.
        """
        if is_parametrized(self, name):  # by PEFT, for one, which would round what it adds to whole numbers
            raise ConfigError(
                f"{name} is stored in {self.bits} bits, and nothing can be added to it: leave it out of the adapters, "
                "which may be on attention and the router, or load the experts in full precision"
            )
        scales = getattr(self, name + SCALES).to(torch.bfloat16)
        return getattr(self, name), scales, getattr(self, f"{name}_bias") if self.has_bias else None

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
