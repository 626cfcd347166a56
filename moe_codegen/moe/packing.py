"""`pack_experts`: a model's experts in the order the CPU kernel reads them, for inference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from moe_codegen.errors import ConfigError
from moe_codegen.moe.implementation import activation_of, why_not_fused
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
        self.activation = activation_of(plain)
        for name in (self.up_name, "down_proj"):
            matrices = getattr(plain, name)
            self.register_parameter(name, nn.Parameter(pack_matrices(matrices.detach()), matrices.requires_grad))
            del matrices
            setattr(plain, name, None)  # one matrix at a time is held twice
            self.register_parameter(f"{name}_bias", getattr(plain, f"{name}_bias") if plain.has_bias else None)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As every experts module of transformers; without gradients.

        Raises:
            ConfigError: gradients are asked for.
        """
        leaves = (hidden_states, *self.parameters())
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
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
            packed = getattr(self, name)
            setattr(plain, name, nn.Parameter(unpack_matrices(packed.detach()), packed.requires_grad))
            setattr(self, name, None)
        return plain

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in (self.up_name, "down_proj"):
            destination[prefix + name] = unpack_matrices(getattr(self, name).detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in (self.up_name, "down_proj"):
            packed, given = getattr(self, name), state_dict.get(prefix + name)
            experts, panels, columns, panel = packed.shape
            if given is not None and given.shape == (experts, panels * panel, columns):
                state_dict = {**state_dict, prefix + name: pack_matrices(given.to(packed.dtype))}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.check_stays(fn)
        return super()._apply(fn, recurse)

    def check_stays(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Raise ConfigError if `fn`, about to be applied to every parameter, would cast or move these."""
        here = getattr(self, self.up_name)
        there = fn(here.new_empty(1))
        if (there.dtype, there.device) != (here.dtype, here.device):
            raise ConfigError(
                f"experts packed as {here.dtype} on {here.device} cannot become {there.dtype} on {there.device}; "
                "call unpack_experts(model) first"
            )


def pack_experts(model: nn.Module) -> int:
    """Pack the experts of `model`, in place, for inference on this processor; returns how many modules were packed.

    Matrix after matrix takes the place of the plain one, so no second copy of the model is held. It computes the same;
    `save_pretrained` of a mixture and `state_dict` write plain weights. Modules that gain nothing stay as they are,
    and a warning says why. Works on every MoE model of transformers whose experts `expert_ffn` computes as one op.
    """
    packed = 0
    found = list(_experts_of(model))
    if not found and not is_packed(model):
        quantised = any(isinstance(module, QuantisedExperts) for module in model.modules())
        why = "quantised experts, which are stored in the order they are read" if quantised else "no experts to pack"
        logger.warning_once(f"pack_experts left {type(model).__name__} as it is: it has {why}")
    for parent, name, experts in found:
        reason = _why_not_under_adapters(name) or why_not_fused(experts) or _why_not_its_weights(experts)
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


def check_packed_stay(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Raise ConfigError if `fn` would cast or move packed experts of `model`, before it does so to anything else."""
    for module in model.modules():
        if isinstance(module, PackedExperts):
            module.check_stays(fn)


def is_packed(model: nn.Module) -> bool:
    """Whether any experts of `model` are packed."""
    return any(isinstance(module, PackedExperts) for module in model.modules())


def _experts_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every module that transformers would run an experts implementation for: its parent, its name there, itself."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if hasattr(child, "down_proj") and hasattr(child, "is_transposed"):  # transformers' decorator sets it
                yield parent, name, child


def _why_not_under_adapters(name: str) -> str | None:
    # What PEFT wraps it calls so, and goes on to change the wrapped module's plain matrices.
    return "has adapters; merge them first with merge_and_unload()" if name == "base_layer" else None


def _why_not_its_weights(experts: Any) -> str | None:
    matrices = (experts.gate_up_proj if experts.has_gate else experts.up_proj, experts.down_proj)
    reasons = filter(None, map(why_not_packed, matrices))
    return next((f"has weights that {reason}" for reason in reasons), None)
