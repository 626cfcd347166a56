"""`experts_implementation="moe_codegen"`: the expert kernels for every MoE model in transformers."""

from typing import Any

from torch import Tensor, nn
from transformers import activations
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.utils import logging

from moe_codegen_kernels import expert_ffn

logger = logging.get_logger(__name__)

NAME = "moe_codegen"

ACTIVATION_OF: dict[type[nn.Module], str] = {
    activations.NewGELUActivation: "gelu_tanh",
    activations.FastGELUActivation: "gelu_tanh",
    activations.GELUTanh: "gelu_tanh",
    activations.GELUActivation: "gelu",
    activations.SiLUActivation: "silu",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
}


def register_experts_implementation() -> None:
    """Make `experts_implementation="moe_codegen"` known to transformers; safe to call again."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward of a transformers experts module, through `expert_ffn`.

    Parameters are read from the module on every call, since PEFT and bitsandbytes parametrise them. Experts
    that compute something else than `expert_ffn` run through transformers' default, with one warning.
    """
    reason = why_not(self)
    if reason is not None:
        logger.warning_once(
            f"{type(self).__name__} {reason}, which experts_implementation={NAME!r} does not support; "
            "it runs through transformers' grouped_mm."
        )
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden_states, top_k_index, top_k_weights)
    prefix = "gate_up_proj" if self.has_gate else "up_proj"
    up, down = getattr(self, prefix), self.down_proj
    out_TD = expert_ffn(
        hidden_states.to(up.dtype),
        top_k_index,
        top_k_weights,
        up,
        getattr(self, f"{prefix}_bias") if self.has_bias else None,
        down,
        self.down_proj_bias if self.has_bias else None,
        activation=ACTIVATION_OF[type(self.act_fn)],
        gated=self.has_gate,
        recompute=getattr(self.config, "recompute_experts", False),
    )
    return out_TD.to(hidden_states.dtype)


def why_not(experts: Any) -> str | None:
    """What about `experts` the kernels do not compute, as a clause for a warning; None when they do."""
    if experts.is_transposed:
        return "stores its weights transposed"
    if getattr(experts, "has_post_expert_norm", False):  # absent before transformers 5.23
        return "has a norm after each expert"
    if experts.has_gate and not experts.is_concatenated:
        return "interleaves gate and up weights"
    if experts.has_gate and type(experts)._apply_gate.__module__ != "transformers.integrations.moe":
        return "has a gate function of its own"
    if type(experts.act_fn) not in ACTIVATION_OF:
        return f"has the activation {type(experts.act_fn).__name__}"
    return None
