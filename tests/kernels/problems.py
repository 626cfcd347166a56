"""Inputs for expert_ffn, the path it must not be worse than, and the one check every kernel has to pass.

T tokens, D model, F expert hidden, G = 2F when gated else F, E experts, K top-k.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from moe_codegen_kernels import oracle
from moe_codegen_kernels.activations import activate
from moe_codegen_kernels.records import ExpertWeights

LOADS = ("random", "one_hot", "empty_experts", "sentinels", "repeated")
TENSORS = ("hidden_TD", "weights_TK", "up", "up_bias", "down", "down_bias")


@dataclass
class Problem:
    """Arguments of one expert_ffn call and the gradient of its output."""

    hidden_TD: Tensor
    expert_ids_TK: Tensor
    weights_TK: Tensor
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    grad_TD: Tensor
    activation: str
    gated: bool

    def to(self, dtype: torch.dtype, weights_dtype: torch.dtype = torch.float32) -> "Problem":
        """The same problem rounded to `dtype`; routing weights apart."""
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.is_floating_point():
                changed[field.name] = value.to(weights_dtype if field.name == "weights_TK" else dtype)
        return replace(self, **changed)

    def on(self, device: str) -> "Problem":
        """The same problem on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: v.to(device) for n, v in tensors.items() if isinstance(v, Tensor)})

    def first(self, tokens: int) -> "Problem":
        """The same problem with fewer tokens."""
        names = ("hidden_TD", "expert_ids_TK", "weights_TK", "grad_TD")
        return replace(self, **{name: getattr(self, name)[:tokens] for name in names})

    def arguments(self) -> tuple[Tensor | None, ...]:
        """The positional arguments of expert_ffn."""
        names = ("hidden_TD", "expert_ids_TK", "weights_TK", "up", "up_bias", "down", "down_bias")
        return tuple(getattr(self, name) for name in names)

    def routed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The input, and where it goes."""
        return self.hidden_TD, self.expert_ids_TK, self.weights_TK

    def experts(self) -> ExpertWeights[Tensor]:
        """The weights as the kernels take them."""
        return ExpertWeights(self.up, self.up_bias, self.down, self.down_bias, self.activation, self.gated)


def make_problem(
    tokens: int = 37,
    model: int = 24,
    hidden: int = 40,
    experts: int = 5,
    top_k: int = 2,
    load: str = "random",
    activation: str = "gelu_tanh",
    gated: bool = False,
    bias: bool = True,
    seed: int = 0,
) -> Problem:
    """A float64 problem whose values are exact in bfloat16: every dtype starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale
        return values.to(torch.bfloat16).double()

    ids_TK = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)])
    if load == "one_hot":
        ids_TK[:, 0] = experts - 1
        ids_TK[:, 1:] = ids_TK[:, 1:] % max(experts - 1, 1)
    elif load == "empty_experts":
        ids_TK = ids_TK % 2 + 1
    elif load == "sentinels":
        ids_TK[torch.rand(ids_TK.shape, generator=generator) < 0.5] = experts
    elif load == "repeated":
        ids_TK[:] = ids_TK[:, :1]
    grown = 2 * hidden if gated else hidden
    return Problem(
        hidden_TD=normal(tokens, model),
        expert_ids_TK=ids_TK,
        weights_TK=torch.softmax(normal(tokens, top_k), dim=-1),
        up=normal(experts, grown, model, scale=model**-0.5),
        up_bias=normal(experts, grown) if bias else None,
        down=normal(experts, model, hidden, scale=hidden**-0.5),
        down_bias=normal(experts, model) if bias else None,
        grad_TD=normal(tokens, model),
        activation=activation,
        gated=gated,
    )


def eager_expert_ffn(
    hidden_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    *,
    activation: str,
    gated: bool,
) -> Tensor:
    """The loop over experts of a model's own modelling code: every step rounded to the model's dtype."""
    out_TD = torch.zeros_like(hidden_TD)
    for expert in range(up.shape[0]):
        tokens_M, choices_M = torch.where(expert_ids_TK == expert)
        h_MG = torch.nn.functional.linear(hidden_TD[tokens_M], up[expert], None if up_bias is None else up_bias[expert])
        if gated:
            gate_MF, value_MF = h_MG.chunk(2, dim=-1)
            a_MF = activate(activation, gate_MF) * value_MF
        else:
            a_MF = activate(activation, h_MG)
        y_MD = torch.nn.functional.linear(a_MF, down[expert], None if down_bias is None else down_bias[expert])
        weighed_MD = y_MD * weights_TK[tokens_M, choices_M, None]
        out_TD.index_add_(0, tokens_M, weighed_MD.to(out_TD.dtype))
    return out_TD


def outputs_and_gradients(function, problem: Problem) -> dict[str, Tensor]:
    """Output and every gradient of `function`, by name."""
    inputs = {}
    for name in TENSORS:
        value = getattr(problem, name)
        inputs[name] = None if value is None else value.detach().clone().requires_grad_()
    out_TD = function(*replace(problem, **inputs).arguments(), activation=problem.activation, gated=problem.gated)
    out_TD.backward(problem.grad_TD)
    results = {"out_TD": out_TD.detach()}
    results |= {f"d_{name}": value.grad for name, value in inputs.items() if value is not None}
    return results


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth| in the Frobenius norm, float64; infinite when value is not finite."""
    if not torch.isfinite(value).all():
        return float("inf")
    scale = truth.double().norm().clamp_min(1e-30)
    return ((value.double().cpu() - truth.double().cpu()).norm() / scale.cpu()).item()


def check_against_oracle(function, problem: Problem, dtype: torch.dtype, slack: float = 1.5) -> None:
    """Fail unless each tensor's error is at most `slack` times the eager path's in the same dtype.

    One unit in the last place of the dtype is always allowed: on small tensors eager can be exact by luck.
    """
    truth = outputs_and_gradients(oracle.expert_ffn, problem.to(torch.float64, torch.float64))
    rounded = problem.to(dtype)
    eager = outputs_and_gradients(eager_expert_ffn, rounded)
    results = outputs_and_gradients(function, rounded)
    for name, value in results.items():
        error, allowed = relative_error(value, truth[name]), relative_error(eager[name], truth[name])
        limit = max(slack * allowed, torch.finfo(dtype).eps)
        assert error <= limit, f"{name}: relative error {error:.3g}, eager {allowed:.3g}, limit {limit:.3g}"
