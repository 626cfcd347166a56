"""The numerics of every GEMM, epilogue and reduction, forward and backward, by pointer and by TMA."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch

from moe_codegen_kernels import ACTIVATIONS, quantise_weight
from moe_codegen_kernels.gpu import decode, layer, pointer, tma
from moe_codegen_kernels.gpu.routing import Schedule
from moe_codegen_kernels.quantised_weights import Quantised
from moe_codegen_kernels.records import RoutingPlan
from moe_codegen_kernels.tiles import Tile
from tests.kernels.gpu_path import GPU, expert_ffn_on_gpu_path, use_tiles
from tests.kernels.problems import (
    LOADS,
    check_against_oracle,
    eager_expert_ffn,
    make_problem,
    oracle,
    outputs_and_gradients,
    relative_error,
)

PATHS = ("pointer", "tma")


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    use_tiles(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize(("load", "gated"), list(zip(LOADS, itertools.cycle((False, True)), strict=False)))
def test_no_worse_than_eager_for_every_load(path, load, gated):
    problem = make_problem(load=load, gated=gated, activation="silu" if gated else "gelu_tanh")
    check_against_oracle(expert_ffn_on_gpu_path, problem, torch.bfloat16)


@pytest.mark.parametrize(
    ("activation", "gated", "bias"),
    [("gelu", False, True), ("relu", True, False), ("gelu_tanh", True, True), ("silu", False, False)],
)
def test_no_worse_than_eager_for_every_kind_of_expert(path, activation, gated, bias):
    problem = make_problem(activation=activation, gated=gated, bias=bias)
    check_against_oracle(functools.partial(expert_ffn_on_gpu_path, recompute=True), problem, torch.float16)


@pytest.mark.parametrize(("gated", "load"), [(False, "random"), (True, "sentinels")])
def test_float32(monkeypatch, gated, load):
    use_tiles(monkeypatch, "tma")  # which float32 cannot take
    check_against_oracle(expert_ffn_on_gpu_path, make_problem(gated=gated, load=load), torch.float32)


@pytest.mark.parametrize(("tokens", "model", "hidden", "top_k"), [(1, 24, 40, 1), (19, 23, 37, 3), (40, 8, 72, 1)])
def test_odd_sizes(path, tokens, model, hidden, top_k):
    problem = make_problem(tokens, model, hidden, 4, top_k, gated=True)
    check_against_oracle(expert_ffn_on_gpu_path, problem, torch.float16, slack=2)


def test_non_contiguous_inputs(path):
    problem = make_problem().to(torch.float16)
    expected = outputs_and_gradients(expert_ffn_on_gpu_path, problem)
    for name in ("hidden_TD", "up", "down", "weights_TK", "grad_TD"):
        setattr(problem, name, getattr(problem, name).mT.contiguous().mT)
    for name, value in outputs_and_gradients(expert_ffn_on_gpu_path, problem).items():
        assert torch.equal(value, expected[name]), name


def test_no_tokens(monkeypatch):
    use_tiles(monkeypatch, "pointer")  # which is where no rows always go: TMA's buckets begin above them
    results = outputs_and_gradients(expert_ffn_on_gpu_path, make_problem(1).first(0).to(torch.float16))
    assert results["out_TD"].shape == (0, 24)
    assert not any(results[name].any() for name in ("d_up", "d_up_bias", "d_down", "d_down_bias"))


@pytest.mark.parametrize("trains", [True, False])  # by a GEMM, by `decode`
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nan_in_the_input_shows_in_the_output(monkeypatch, activation, trains):
    use_tiles(monkeypatch, "pointer")
    problem = make_problem(tokens=5, activation=activation).to(torch.float16)
    problem.hidden_TD[2, 3] = float("nan")
    out_TD, *_ = layer.expert_ffn(*problem.routed(), problem.experts(), trains, False, GPU)
    assert out_TD.isnan().any(dim=1).tolist() == [False, False, True, False, False]


def test_repeats_are_bitwise_equal(path):
    problem = make_problem(load="one_hot").to(torch.float16)
    first, second = (outputs_and_gradients(expert_ffn_on_gpu_path, problem) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_frozen_expert_costs_the_others_nothing(path):
    problem = make_problem().to(torch.float16)
    everything = outputs_and_gradients(expert_ffn_on_gpu_path, problem)
    experts = problem.experts()
    _, h_RG, *plan = layer.expert_ffn(*problem.routed(), experts, True, True, GPU)
    needs = [True, True, False, False, False, False]
    d_hidden, d_weights, *rest = layer.expert_ffn_backward(
        problem.grad_TD, problem.hidden_TD, problem.weights_TK, experts, h_RG, RoutingPlan(*plan), needs, GPU
    )
    assert torch.equal(d_hidden, everything["d_hidden_TD"])
    assert torch.equal(d_weights, everything["d_weights_TK"])
    assert all(gradient.numel() == 0 for gradient in rest)


@pytest.mark.parametrize("experts", [5, 100])  # fewer and more than routed rows
@pytest.mark.parametrize(("load", "gated"), list(zip(LOADS, itertools.cycle((False, True)), strict=False)))
def test_decode(load, gated, experts):
    problem = make_problem(tokens=7, experts=experts, load=load, gated=gated)
    truth_TD = oracle.expert_ffn(*problem.arguments(), activation="gelu_tanh", gated=gated)
    rounded = problem.to(torch.float16)
    eager_TD = eager_expert_ffn(*rounded.arguments(), activation="gelu_tanh", gated=gated)
    out_TD, *kept = layer.expert_ffn(*rounded.routed(), rounded.experts(), False, False, GPU)
    assert all(x.numel() == 0 for x in kept)
    assert relative_error(out_TD, truth_TD) <= 1.5 * relative_error(eager_TD, truth_TD)


QUANTISED = [(8, None, 24, 40), (8, 32, 160, 32), (8, 256, 512, 256), (4, None, 96, 160), (4, 64, 192, 64)]


def _quantised(problem, bits, group):
    """The experts as stored, and the same problem with the weights that these stand for."""
    up, down = (Quantised(*quantise_weight(matrices, bits, group)) for matrices in (problem.up, problem.down))
    stored = problem.to(torch.float16).experts()._replace(up=up, down=down)
    return stored, replace(problem, up=up.to(torch.float64), down=down.to(torch.float64))


@pytest.mark.parametrize(("gated", "experts"), [(False, 4), (True, 9)])  # fewer and more than routed rows
@pytest.mark.parametrize(("bits", "group", "model", "hidden"), QUANTISED)
def test_decode_of_quantised_weights(bits, group, model, hidden, gated, experts):
    """One group a row, several in a step of K, and several steps in a group; rows that end within a step."""
    stored, problem = _quantised(make_problem(3, model, hidden, experts, load="sentinels", gated=gated), bits, group)
    truth_TD = oracle.expert_ffn(*problem.arguments(), activation="gelu_tanh", gated=gated)
    rounded = problem.to(torch.float16)
    eager_TD = eager_expert_ffn(*rounded.arguments(), activation="gelu_tanh", gated=gated)
    out_TD = layer.quantised_expert_ffn(*rounded.routed(), stored, GPU)
    assert relative_error(out_TD, truth_TD) <= 1.5 * relative_error(eager_TD, truth_TD)


def test_decode_leaves_what_it_cannot_read():
    """A group that no step of K holds whole, and more tokens than it takes."""
    for tokens, group in ((7, 96), (65, 32)):
        stored, problem = _quantised(make_problem(tokens, 192, 192), 4, group)
        assert layer.quantised_expert_ffn(*problem.to(torch.float16).routed(), stored, GPU) is None


def test_decode_takes_over_only_where_it_serves(monkeypatch):
    use_tiles(monkeypatch, "pointer")
    calls = []
    monkeypatch.setattr(decode, "expert_ffn", lambda *a: calls.append(a[0].shape[0]) or a[0])
    for tokens in (64, 65):
        problem = make_problem(tokens).to(torch.float16)
        layer.expert_ffn(*problem.routed(), problem.experts(), False, False, GPU)
    assert calls == [64]


@pytest.mark.parametrize("gemms", [pointer, tma])
def test_results_past_2_to_the_31_elements(gemms):
    """The last of 2^22 rows of 1024 columns; the memory before it is reserved and never touched."""
    rows, columns, inner = 2**22, 1024, 16
    last = rows - 16
    rows_RK = torch.zeros(rows, inner, dtype=torch.float16)
    rows_RK[last:] = torch.randn(16, inner)
    matrices = torch.randn(2, columns, inner, dtype=torch.float16)
    offsets_E = torch.tensor([0, last, rows], dtype=torch.int32)
    entries = torch.tensor([1, 1, 0, 1, last, rows], dtype=torch.int32)  # only the last expert's one tile
    schedule = Schedule(entries, offsets_E, 1, 16, 1)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        out_RN = gemms.linear(rows_RK, matrices, None, schedule, Tile(16, 128, 16, 4, 2))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    assert out_RN.numel() > 2**31
    truth = rows_RK[last:].double() @ matrices[1].double().T
    assert relative_error(out_RN[last:], truth) < 1e-3
