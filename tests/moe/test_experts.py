"""The experts and the layer, against a reference in fp64 that shares no code with them."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen.moe import Experts
from tests.modeling.mixture import IMPLEMENTATIONS

ACTIVATIONS = {
    "silu": lambda v: v / (1 + math.exp(-v)),
    "gelu_new": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
}


def experts(implementation, count=3, width=5, inner=7, activation="silu", gated=True, bias=False):
    config = SimpleNamespace(
        num_experts=count, hidden_size=width, moe_intermediate_size=inner, _experts_implementation=implementation
    )
    made = Experts(config, activation=activation, gated=gated, bias=bias)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return made


def problem(tokens, width, count, top_k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator)
    ids = torch.rand(tokens, count, generator=generator).argsort(-1)[:, :top_k]
    return x, ids, torch.rand(tokens, top_k, generator=generator)


def reference(made, activation, x, ids, weights):
    """`sum_k w_k down(act(up x))` token by token, in fp64 and in plain loops."""
    p = {name: parameter.detach().double() for name, parameter in made.named_parameters()}
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, (row, chosen) in enumerate(zip(x.double(), ids.tolist(), strict=True)):
        for k, e in enumerate(chosen):
            if e >= made.num_experts:
                continue
            inner = "gate_up_proj" if "gate_up_proj" in p else "up_proj"
            h = (p[inner][e] * row).sum(-1) + p.get(f"{inner}_bias", torch.zeros(made.num_experts, 1))[e]
            if inner == "gate_up_proj":
                gate, up = h[: len(h) // 2], h[len(h) // 2 :]
                a = torch.tensor([ACTIVATIONS[activation](v) for v in gate.tolist()], dtype=torch.float64) * up
            else:
                a = torch.tensor([ACTIVATIONS[activation](v) for v in h.tolist()], dtype=torch.float64)
            y = (p["down_proj"][e] * a).sum(-1) + p.get("down_proj_bias", torch.zeros(made.num_experts, 1))[e]
            out[token] += weights[token, k].double() * y
    return out


KINDS = [("silu", True, False), ("silu", True, True), ("gelu_new", False, True), ("gelu_new", False, False)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("activation", "gated", "bias"), KINDS)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 9),
    sizes=st.integers(1, 6).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))),
    width=st.integers(1, 9),
    inner=st.integers(1, 9),
)
def test_every_implementation_computes_the_reference(
    implementation, activation, gated, bias, tokens, sizes, width, inner
):
    count, top_k = sizes
    # grouped_mm wants rows of 16 bytes.
    width, inner = (4 * width, 4 * inner) if implementation == "grouped_mm" else (width, inner)
    made = experts(implementation, count, width, inner, activation, gated, bias)
    x, ids, weights = problem(tokens, width, count, top_k)
    expected = reference(made, activation, x, ids, weights)
    scale = max(1.0, expected.abs().max().item())  # GELU's far tail is a difference of numbers near one
    torch.testing.assert_close(made(x, ids, weights).double(), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("implementation", [each for each in IMPLEMENTATIONS if each != "eager"])
@pytest.mark.parametrize(("activation", "gated", "bias"), KINDS)
def test_every_implementation_has_the_gradients_of_the_plain_loop(implementation, activation, gated, bias):
    gradients = {}
    for each in ("eager", implementation):
        made = experts(each, 4, 8, 12, activation, gated, bias)
        x, ids, weights = problem(11, 8, 3, 2)  # expert 3 gets no token
        x.requires_grad_(), weights.requires_grad_()
        made(x, ids, weights).square().sum().backward()
        gradients[each] = {"x": x.grad, "weights": weights.grad} | {n: p.grad for n, p in made.named_parameters()}
    for name, gradient in gradients["eager"].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[implementation][name], gradient, rtol=1e-4, atol=1e-5 * scale)


def test_an_expert_without_tokens_has_zero_gradients_and_not_none():
    made = experts("eager")
    x, ids, weights = problem(6, 5, 2, 1)
    made(x, ids, weights).sum().backward()
    assert all(p.grad is not None and not p.grad[2].any() for p in made.parameters())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_sentinel_id_of_expert_parallelism_contributes_nothing(implementation):
    made = experts(implementation, 3, 8, 8)
    made._is_expert_parallel = True
    x, ids, weights = problem(10, 8, 3, 2)
    ids[::2, 1], weights[::2, 1] = 3, 0.0  # what transformers' RouterParallel hands to a shard of the experts
    ids[4] = 3
    weights[4] = 0.0
    made_output = made(x, ids, weights)
    expected = reference(made, "silu", x, ids, weights)
    torch.testing.assert_close(made_output.double(), expected, rtol=1e-4, atol=1e-4)
    assert not made_output[4].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bf16_outputs_are_summed_in_fp32_and_rounded_once(implementation):
    made = experts(implementation, 2, 8, 8)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter[1] = parameter[0]
    made.bfloat16()
    x = problem(40, 8, 2, 2)[0].bfloat16()
    ids = torch.tensor([0, 1]).expand(40, 2)
    y = made(x, torch.zeros(40, 1, dtype=torch.int64), torch.ones(40, 1))
    torch.testing.assert_close(made(x, ids, torch.tensor([0.3, 0.7]).expand(40, 2)), y, rtol=0, atol=0)


def test_parameters_are_read_on_every_call():
    # PEFT and bitsandbytes put a parametrisation in a parameter's place.
    made = experts("eager")
    x, ids, weights = problem(4, 5, 3, 2)
    before = made(x, ids, weights)

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(made, "down_proj", Doubled())
    torch.testing.assert_close(made(x, ids, weights), 2 * before)
