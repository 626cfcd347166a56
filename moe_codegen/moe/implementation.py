"""`experts_implementation="moe_codegen"`: the expert kernels for every MoE model in transformers.

Experts that compute what `expert_ffn` does run as that one op. Those with a gate function or activation of their own,
transposed weights or a norm after each expert run as the parts it is made of, their own code in between:

    x_TD -> gather -> grouped_gemm -> gate or activation -> grouped_gemm -> [norm] -> combine -> out_TD

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import activations
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.utils import logging

from moe_codegen_kernels import ACTIVATIONS, combine, expert_ffn, gather, grouped_gemm, routing_plan
from moe_codegen_kernels.checks import DEVICES

logger = logging.get_logger(__name__)

NAME = "moe_codegen"

ACTIVATION_OF: dict[Any, str] = {  # by a module's class, or by the function itself
    activations.NewGELUActivation: "gelu_tanh",
    activations.FastGELUActivation: "gelu_tanh",
    activations.GELUTanh: "gelu_tanh",
    activations.GELUActivation: "gelu",
    activations.SiLUActivation: "silu",
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.relu: "relu",
}


def register_experts_implementation() -> None:
    """Make `experts_implementation="moe_codegen"` known to transformers; safe to call again."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward of a transformers experts module: (T, D) in, (T, D) out.

    Parameters are read from the module on every call, since PEFT and bitsandbytes parametrise them. Devices without
    kernels of ours run transformers' default, with one warning.
    """
    if hidden_states.device.type not in DEVICES:
        logger.warning_once(f"there are no kernels for {hidden_states.device}; experts run as grouped_mm")
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden_states, top_k_index, top_k_weights)
    compute = _fused if why_not_fused(self) is None else _in_parts
    up_name = "gate_up_proj" if self.has_gate else "up_proj"
    up = getattr(self, up_name)
    up_bias, down_bias = (getattr(self, f"{up_name}_bias"), self.down_proj_bias) if self.has_bias else (None, None)
    out_TD = compute(
        self, hidden_states.to(up.dtype), top_k_index, top_k_weights, up, up_bias, self.down_proj, down_bias
    )
    return out_TD.to(hidden_states.dtype)


def _fused(experts: Any, *routed_and_weights: Any) -> Tensor:
    return expert_ffn(
        *routed_and_weights,
        activation=activation_of(experts),
        gated=experts.has_gate,
        recompute=getattr(experts.config, "recompute_experts", False),
    )


def _in_parts(
    experts: Any,
    hidden_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
) -> Tensor:
    if experts.is_transposed:
        up, down = up.mT, down.mT
    plan = routing_plan(ids_TK, up.shape[0])
    x_RD = gather(hidden_TD, plan, ids_TK.shape[1])
    h_RG = grouped_gemm(x_RD, up, up_bias, plan.offsets_E)
    a_RF = experts._apply_gate(h_RG) if experts.has_gate else experts.act_fn(h_RG)
    y_RD = grouped_gemm(a_RF.to(h_RG.dtype), down, down_bias, plan.offsets_E)
    if _has_norm(experts):
        y_RD = experts.post_expert_norm(y_RD)
    return combine(y_RD, weights_TK, plan)


def _has_norm(experts: Any) -> bool:
    return getattr(experts, "has_post_expert_norm", False)  # absent before transformers 5.23


def why_not_fused(experts: Any) -> str | None:
    """What about `experts` is not as in `expert_ffn`, as a clause for a warning; None when all is."""
    if experts.is_transposed:
        return "stores its weights transposed"
    if _has_norm(experts):
        return "has a norm after each expert"
    if experts.has_gate and not experts.is_concatenated:
        return "interleaves gate and up weights"
    if experts.has_gate and type(experts)._apply_gate.__module__ != "transformers.integrations.moe":
        return "has a gate function of its own"
    if activation_of(experts) not in ACTIVATIONS:
        return f"has the activation {activation_of(experts)}"
    return None


def activation_of(experts: Any) -> str:
    """The kernels' name of the activation, or, where they have none, its own."""
    kind = type(experts.act_fn) if isinstance(experts.act_fn, nn.Module) else experts.act_fn
    return ACTIVATION_OF.get(kind, getattr(kind, "__name__", str(kind)))
