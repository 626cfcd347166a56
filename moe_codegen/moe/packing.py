"""`pack_experts`: a model's experts in the order the CPU kernel reads them, for inference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from moe_codegen.errors import ConfigError
from moe_codegen.moe.implementation import ACTIVATION_OF, why_not
from moe_codegen.moe.quantised import QuantisedExperts
from moe_codegen_kernels import pack_matrices, packed_expert_ffn, unpack_matrices, why_not_packed

logger = logging.get_logger(__name__)


class PackedExperts(nn.Module):
    """The experts module it was made from, its matrices packed; its state dict holds the plain ones."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        # Kept without its matrices, to be given back by `unpack`; in a tuple, so that it is no submodule of this one.
        self._plain = (plain,)
        self.up_name = "gate_up_proj" if plain.has_gate else "up_proj"
        self.activation = ACTIVATION_OF[type(plain.act_fn)]
        for name in (self.up_name, "down_proj"):
            packed = pack_matrices(getattr(plain, name).detach())
            self.register_parameter(name, nn.Parameter(packed, requires_grad=False))
            setattr(plain, name, None)  # one matrix at a time is held twice
            self.register_parameter(f"{name}_bias", getattr(plain, f"{name}_bias") if plain.has_bias else None)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As every experts module of transformers; without gradients.

        Raises:
            ConfigError: gradients are asked for.
        """
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise ConfigError("packed experts have no gradients; call unpack_experts(model) before training")
        up, up_bias, down, down_bias = self._parameters.values()
        assert up is not None
        assert down is not None
        out_TD = packed_expert_ffn(
            hidden_states.to(up.dtype),
            top_k_index,
            top_k_weights,
            up,
            up_bias,
            down,
            down_bias,
            activation=self.activation,
            gated=self.up_name == "gate_up_proj",
        )
        return out_TD.to(hidden_states.dtype)

    def unpack(self) -> nn.Module:
        """The module it was made from, with its matrices again; this one is empty after."""
        (plain,) = self._plain
        for name in (self.up_name, "down_proj"):
            setattr(plain, name, nn.Parameter(unpack_matrices(getattr(self, name))))
            setattr(self, name, None)
        return plain

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in (self.up_name, "down_proj"):
            destination[prefix + name] = unpack_matrices(getattr(self, name).detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        here = getattr(self, self.up_name)
        there = fn(here.new_empty(1))
        if (there.dtype, there.device) != (here.dtype, here.device):
            raise ConfigError(
                f"experts packed as {here.dtype} on {here.device} cannot become {there.dtype} on {there.device}; "
                "call unpack_experts(model) first"
            )
        return super()._apply(fn, recurse)


def pack_experts(model: nn.Module) -> int:
    """Pack the experts of `model`, in place, for inference on this processor; returns how many modules were packed.

    Matrix after matrix takes the place of the plain one, so no second copy of the model is held. It computes the same;
    `save_pretrained` of a mixture and `state_dict` write plain weights. Modules that gain nothing stay as they are,
    and a warning says why. Works on every MoE model of transformers that `experts_implementation="moe_codegen"` runs.
    """
    packed = 0
    found = list(_experts_of(model))
    if not found:
        quantised = any(isinstance(module, QuantisedExperts) for module in model.modules())
        why = "quantised experts, which are stored in the order they are read" if quantised else "no experts to pack"
        logger.warning_once(f"pack_experts left {type(model).__name__} as it is: it has {why}")
    for parent, name, experts in found:
        reason = why_not(experts) or _why_not_its_weights(experts)
        if reason is not None:
            logger.warning_once(f"{type(experts).__name__} {reason}; it stays as it is")
        else:
            setattr(parent, name, PackedExperts(experts))
            packed += 1
    return packed


def unpack_experts(model: nn.Module) -> None:
    """Undo `pack_experts`, in place, matrix after matrix."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedExperts):
                setattr(parent, name, child.unpack())


def is_packed(model: nn.Module) -> bool:
    """Whether any experts of `model` are packed."""
    return any(isinstance(module, PackedExperts) for module in model.modules())


def _experts_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every module that transformers would run an experts implementation for: its parent, its name there, itself."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if hasattr(child, "down_proj") and hasattr(child, "is_transposed"):  # transformers' decorator sets it
                yield parent, name, child


def _why_not_its_weights(experts: Any) -> str | None:
    matrices = (experts.gate_up_proj if experts.has_gate else experts.up_proj, experts.down_proj)
    reasons = filter(None, map(why_not_packed, matrices))
    return next((f"has weights that {reason}" for reason in reasons), None)
