"""expert_ffn on the CPU: numerics, gradients, and behaviour as a torch op."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen_kernels import ACTIVATIONS, checks, expert_ffn, oracle
from moe_codegen_kernels.cpu import layer
from tests.kernels.problems import (
    LOADS,
    TENSORS,
    check_against_oracle,
    eager_expert_ffn,
    make_problem,
    outputs_and_gradients,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("load", LOADS)
def test_no_worse_than_eager_for_every_load(load, dtype):
    check_against_oracle(expert_ffn, make_problem(load=load), dtype)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("rows_a_thread", [1, 4, 16])
def test_experts_taken_together_or_in_parts_give_the_same(rows_a_thread, load, monkeypatch):
    problem = make_problem(model=64, hidden=96, load=load).to(torch.float32)
    kind = {"activation": problem.activation, "gated": problem.gated}
    expected = expert_ffn(*problem.arguments(), **kind)
    monkeypatch.setattr(layer, "GROUP_ROWS", rows_a_thread)
    torch.testing.assert_close(expert_ffn(*problem.arguments(), **kind), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("load", LOADS)
def test_nothing_is_read_before_it_is_written(load, dtype):
    """torch fills new memory with NaN while it is asked to be deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        check_against_oracle(expert_ffn, make_problem(model=64, hidden=96, load=load), dtype)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_worse_than_eager_for_every_kind_of_expert(activation, gated, bias):
    problem = make_problem(activation=activation, gated=gated, bias=bias)
    for dtype in (torch.float32, torch.bfloat16):
        check_against_oracle(expert_ffn, problem, dtype)
        check_against_oracle(functools.partial(expert_ffn, recompute=True), problem, dtype)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 70),
    model=st.integers(1, 40),
    hidden=st.integers(1, 40),
    experts=st.integers(2, 9),
    top_k=st.integers(1, 2),
    load=st.sampled_from(LOADS),
    gated=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(tokens, model, hidden, experts, top_k, load, gated, seed):
    experts = max(experts, 3)
    problem = make_problem(tokens, model, hidden, experts, top_k, load, gated=gated, seed=seed)
    problem = problem.to(torch.float64, torch.float64)  # where one rounding cannot look like a mistake
    truth = outputs_and_gradients(oracle.expert_ffn, problem)
    for name, value in outputs_and_gradients(expert_ffn, problem).items():
        torch.testing.assert_close(value, truth[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_gradcheck(gated, recompute):
    problem = make_problem(tokens=5, model=4, hidden=6, experts=3, load="sentinels", gated=gated)
    ids_TK = problem.expert_ids_TK
    tensors = [getattr(problem, name).double().requires_grad_() for name in TENSORS]

    def function(hidden_TD, weights_TK, up, up_bias, down, down_bias):
        return expert_ffn(
            hidden_TD, ids_TK, weights_TK, up, up_bias, down, down_bias,
            activation="gelu_tanh", gated=gated, recompute=recompute,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("frozen", TENSORS)
def test_a_frozen_input_costs_the_others_nothing(frozen):
    problem = make_problem().to(torch.float32)
    everything = outputs_and_gradients(expert_ffn, problem)
    inputs = {name: getattr(problem, name).clone().requires_grad_(name != frozen) for name in TENSORS}
    out_TD = expert_ffn(
        inputs["hidden_TD"], problem.expert_ids_TK, inputs["weights_TK"], inputs["up"], inputs["up_bias"],
        inputs["down"], inputs["down_bias"], activation=problem.activation, gated=False,
    )  # fmt: skip
    out_TD.backward(problem.grad_TD)
    for name, value in inputs.items():
        if name == frozen:
            assert value.grad is None
        else:
            assert torch.equal(value.grad, everything[f"d_{name}"])


def test_opcheck():
    problem = make_problem(tokens=6, load="sentinels").to(torch.float32)
    tensors = [
        t.clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in problem.arguments()
    ]
    for gated, recompute in ((False, False), (False, True)):
        torch.library.opcheck(torch.ops.moe_codegen.expert_ffn.default, (*tensors, "gelu_tanh", gated, True, recompute))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_without_graph_breaks(dtype):
    problem = make_problem().to(dtype)
    expected = outputs_and_gradients(expert_ffn, problem)
    results = outputs_and_gradients(torch.compile(expert_ffn, fullgraph=True), problem)
    for name, value in results.items():
        assert torch.equal(value, expected[name]), name


def test_compiled_with_weights_that_are_transposed_views():
    """Gradients are contiguous all the same, as the op's fake says: torch.compile holds it to its word."""
    problem = make_problem().to(torch.float32)
    leaves = []
    for name in TENSORS:
        leaves.append(getattr(problem, name).mT.contiguous().mT.requires_grad_())
        setattr(problem, name, leaves[-1])
    gradients = []
    for function in (expert_ffn, torch.compile(expert_ffn, fullgraph=True)):
        out_TD = function(*problem.arguments(), activation="gelu_tanh", gated=False)
        gradients.append(torch.autograd.grad(out_TD, leaves, problem.grad_TD))
    assert all(torch.equal(ours, truth) for ours, truth in zip(*gradients, strict=True))


def test_repeats_are_bitwise_equal():
    problem = make_problem(tokens=200, load="repeated").to(torch.bfloat16)
    first, second = (outputs_and_gradients(expert_ffn, problem) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_autocast_casts_what_linear_would_and_leaves_the_routing_weights():
    problem = make_problem()
    full, half = problem.to(torch.float32), problem.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = outputs_and_gradients(expert_ffn, full)
    expected = outputs_and_gradients(expert_ffn, half)
    assert results["out_TD"].dtype == torch.bfloat16
    assert torch.equal(results["out_TD"], expected["out_TD"])
    for name in TENSORS:
        assert results[f"d_{name}"].dtype == torch.float32
        assert torch.equal(results[f"d_{name}"], expected[f"d_{name}"].float()), name


def test_non_contiguous_inputs():
    problem = make_problem().to(torch.float32)
    expected = outputs_and_gradients(expert_ffn, problem)
    strided = make_problem().to(torch.float32)
    for name in ("hidden_TD", "up", "down", "weights_TK", "expert_ids_TK", "grad_TD"):
        value = getattr(strided, name)
        setattr(strided, name, value.mT.contiguous().mT)
        assert not getattr(strided, name).is_contiguous()
    results = outputs_and_gradients(expert_ffn, strided)
    for name, value in results.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(("recompute", "expected_bytes"), [(False, 36.1 * 1024), (True, 4.1 * 1024)])
def test_bytes_kept_for_backward(recompute, expected_bytes):
    """SantaCoder's proportions (F = 4D, top-2, bf16) a token, scaled to its D = 2048."""
    tokens, model = 512, 256
    problem = make_problem(tokens, model, 4 * model, experts=4).to(torch.bfloat16)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    arguments = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in problem.arguments()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        expert_ffn(*arguments, activation="gelu_tanh", gated=False, recompute=recompute)
    of_weights = sum(
        t.numel() * t.element_size() for t in (problem.up, problem.up_bias, problem.down, problem.down_bias)
    )
    of_activations = tokens * model * 2 * (1 if recompute else 9)
    routing = sum(kept.values()) - of_weights - of_activations
    assert routing >= 0
    assert of_activations / tokens * (2048 / model) + routing / tokens <= expected_bytes


def test_nothing_is_kept_without_gradients():
    problem = make_problem().to(torch.float32)
    outputs = torch.ops.moe_codegen.expert_ffn(*problem.arguments(), "relu", False, False, False)
    assert outputs[1].numel() == 0
    out_TD = expert_ffn(*problem.arguments(), activation="relu", gated=False)
    assert out_TD.grad_fn is None


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens):
    problem = make_problem(tokens=1).to(torch.float32)
    hidden_TD, ids_TK, weights_TK = (x[:tokens] for x in (problem.hidden_TD, problem.expert_ids_TK, problem.weights_TK))
    hidden_TD = hidden_TD.clone().requires_grad_()
    weights = (problem.up, problem.up_bias, problem.down, problem.down_bias)
    out_TD = expert_ffn(hidden_TD, ids_TK, weights_TK, *weights, activation="silu", gated=False)
    out_TD.sum().backward()
    assert out_TD.shape == hidden_TD.grad.shape == (tokens, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, "choose one of"),
        ({"gated": True}, "up has shape"),
        ({"down_bias": torch.zeros(5, 3)}, "down_bias has shape"),
        ({"expert_ids_TK": torch.zeros(9, 2, dtype=torch.int64)}, "weights_TK has shape"),
        ({"up": torch.zeros(5, 40, 24, dtype=torch.bfloat16)}, "use torch.autocast"),
        ({"up": torch.zeros(5, 40, 24, device="meta")}, "up is on meta and hidden_TD on cpu"),
        ({"expert_ids_TK": torch.zeros(37, 2, dtype=torch.int64, device="meta")}, "expert_ids_TK is on meta"),
        ({"hidden_TD": torch.zeros(2, 3, 24)}, "expected \\(tokens, model\\)"),
    ],
)
def test_errors_say_what_does_not_fit(change, message):
    problem = make_problem().to(torch.float32)
    for name, value in change.items():
        setattr(problem, name, value)
    with pytest.raises(ValueError, match=message):
        expert_ffn(*problem.arguments(), activation=problem.activation, gated=problem.gated)


def test_a_device_without_kernels_is_named(monkeypatch):
    monkeypatch.setattr(checks, "DEVICES", ("cuda", "meta"))
    with pytest.raises(ValueError, match="no kernel for cpu; use one of cuda, meta"):
        expert_ffn(*make_problem().arguments(), activation="silu", gated=False)


def _drop_last_row(plan):
    order_R, inverse_R, offsets_E = plan
    offsets_E = offsets_E.clone()
    offsets_E[-1] -= 1
    return order_R, inverse_R, offsets_E


def _swap_two_experts(plan):
    order_R, inverse_R, offsets_E = plan
    counts_E = offsets_E.diff()
    counts_E[[0, 1]] = counts_E[[1, 0]]
    return order_R, inverse_R, torch.cat((offsets_E[:1], counts_E.cumsum(0))).int()


@pytest.mark.parametrize("mutate", [_drop_last_row, _swap_two_experts])
def test_the_check_sees_a_wrong_plan(monkeypatch, mutate):
    right = layer.routing_plan
    monkeypatch.setattr(layer, "routing_plan", lambda *arguments: mutate(right(*arguments)))
    with pytest.raises(AssertionError, match="relative error"):
        check_against_oracle(expert_ffn, make_problem(), torch.float32)


@pytest.mark.parametrize("name", ["up_bias", "down_bias"])
def test_the_check_sees_a_missing_bias(name):
    def without_bias(*arguments, **options):
        arguments = list(arguments)
        position = {"up_bias": 4, "down_bias": 6}[name]
        arguments[position] = arguments[position] * 0
        return expert_ffn(*arguments, **options)

    with pytest.raises(AssertionError, match="relative error"):
        check_against_oracle(without_bias, make_problem(), torch.bfloat16)


def test_the_check_passes_the_eager_path_itself():
    check_against_oracle(eager_expert_ffn, make_problem(), torch.bfloat16)
