"""The kernels on a GPU: numerics in every dtype, past 2^31 elements, in a CUDA graph, compiled, in real models.

`make gpu-test` runs these; without CUDA they are skipped.
"""

import functools
from dataclasses import replace

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

from moe_codegen.moe.implementation import register_experts_implementation
from moe_codegen_kernels import (
    combine,
    cpu,
    dequantise,
    expert_ffn,
    gather,
    grouped_gemm,
    grouped_gemm_ragged_k,
    oracle,
    quantise_weight,
    quantised_expert_ffn,
    route,
    routing_plan,
    trials,
)
from moe_codegen_kernels.tiles import buckets_of, gpu_of
from moe_codegen_kernels.tune import tune
from tests.kernels.problems import (
    LOADS,
    TENSORS,
    check_against_oracle,
    eager_expert_ffn,
    make_problem,
    outputs_and_gradients,
    relative_error,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZES = {"pointer": {"tokens": 150, "model": 136, "hidden": 200}, "tma": {"tokens": 1500, "model": 256, "hidden": 512}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("load", LOADS)
def test_no_worse_than_eager_for_every_load(load, size, dtype):
    check_against_oracle(expert_ffn, make_problem(**SIZES[size], load=load).on("cuda"), dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "silu", "relu"])
def test_no_worse_than_eager_for_every_kind_of_expert(activation, gated, bias, size):
    problem = make_problem(**SIZES[size], activation=activation, gated=gated, bias=bias).on("cuda")
    check_against_oracle(expert_ffn, problem, torch.bfloat16)
    check_against_oracle(functools.partial(expert_ffn, recompute=True), problem, torch.bfloat16)


@pytest.mark.parametrize(("tokens", "model", "hidden", "top_k"), [(1, 24, 40, 1), (190, 231, 377, 3), (65, 8, 72, 1)])
def test_odd_sizes(tokens, model, hidden, top_k):
    problem = make_problem(tokens, model, hidden, 4, top_k, gated=True).on("cuda")
    check_against_oracle(expert_ffn, problem, torch.bfloat16, slack=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("experts", [5, 100])
@pytest.mark.parametrize("tokens", [1, 3, 16, 64])
def test_decode(tokens, experts, dtype):
    problem = make_problem(tokens, 256, 512, experts, load="sentinels").on("cuda")
    kind = {"activation": "gelu_tanh", "gated": False}
    truth_TD = oracle.expert_ffn(*problem.to(torch.float64, torch.float64).arguments(), **kind)
    rounded = problem.to(dtype)
    error = relative_error(expert_ffn(*rounded.arguments(), **kind), truth_TD)
    eager = relative_error(eager_expert_ffn(*rounded.arguments(), **kind), truth_TD)
    assert error <= max(1.5 * eager, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 64), (4, 32), (4, 128)])
@pytest.mark.parametrize("tokens", [1, 16, 64, 300])
def test_quantised_weights(tokens, bits, group, dtype):
    """The last is more than `decode` takes."""
    problem = make_problem(tokens, 256, 512, 8, load="sentinels", gated=True)
    stored = [(*quantise_weight(getattr(problem, name), bits, group),) for name in ("up", "down")]
    up, down = (dequantise(*pair, torch.float64) for pair in stored)
    problem = replace(problem, up=up, down=down).on("cuda")
    kind = {"activation": "gelu_tanh", "gated": True}
    truth_TD = oracle.expert_ffn(*problem.to(torch.float64, torch.float64).arguments(), **kind)
    rounded = problem.to(dtype)
    (up, up_scales), (down, down_scales) = ((x.cuda() for x in pair) for pair in stored)
    out_TD = quantised_expert_ffn(
        *rounded.routed(), up, up_scales, rounded.up_bias, down, down_scales, rounded.down_bias, **kind
    )
    eager = relative_error(eager_expert_ffn(*rounded.arguments(), **kind), truth_TD)
    assert relative_error(out_TD, truth_TD) <= max(1.5 * eager, torch.finfo(dtype).eps)


def test_gradients_through_quantised_weights():
    problem = make_problem(300, 256, 512, 8, load="sentinels", gated=True).to(torch.float32).on("cuda")
    up, down = quantise_weight(problem.up, 8), quantise_weight(problem.down, 8)

    def gradients(function, *experts):
        hidden_TD, weights_TK = leaves = [x.clone().requires_grad_() for x in (problem.hidden_TD, problem.weights_TK)]
        out_TD = function(hidden_TD, problem.expert_ids_TK, weights_TK, *experts, activation="silu", gated=True)
        return torch.autograd.grad(out_TD, leaves, problem.grad_TD)

    ours = gradients(quantised_expert_ffn, *up, problem.up_bias, *down, problem.down_bias)
    truth = gradients(expert_ffn, dequantise(*up), problem.up_bias, dequantise(*down), problem.down_bias)
    assert all(relative_error(*pair) < 1e-5 for pair in zip(ours, truth, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_non_contiguous_inputs(size):
    problem = make_problem(**SIZES[size]).on("cuda").to(torch.bfloat16)
    expected = outputs_and_gradients(expert_ffn, problem)
    for name in ("hidden_TD", "up", "down", "weights_TK", "grad_TD"):
        setattr(problem, name, getattr(problem, name).mT.contiguous().mT)
    for name, value in outputs_and_gradients(expert_ffn, problem).items():
        assert torch.equal(value, expected[name]), name


def test_no_tokens():
    problem = make_problem(1, 64, 128).first(0).on("cuda").to(torch.bfloat16)
    results = outputs_and_gradients(expert_ffn, problem)
    assert results["out_TD"].shape == (0, 64)
    assert not any(results[name].any() for name in ("d_up", "d_up_bias", "d_down", "d_down_bias"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("size", SIZES)
def test_on_another_device_than_the_current(size):
    problem = make_problem(**SIZES[size]).to(torch.bfloat16)
    here, there = (outputs_and_gradients(expert_ffn, problem.on(device)) for device in ("cuda:0", "cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(there[name].cpu(), here[name].cpu()) for name in here)


@pytest.mark.parametrize("size", SIZES)
def test_repeats_are_bitwise_equal(size):
    problem = make_problem(**SIZES[size], load="one_hot").on("cuda").to(torch.bfloat16)
    first, *others = (outputs_and_gradients(expert_ffn, problem) for _ in range(5))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_parts_equal_the_cpus():
    logits_TE = torch.randn(5000, 60)
    for renormalise in (True, False):
        (weights_TK, ids_TK), (truth_TK, truth_ids_TK) = (
            route(x, 4, renormalise) for x in (logits_TE.cuda(), logits_TE)
        )
        assert torch.equal(ids_TK.cpu(), truth_ids_TK)
        torch.testing.assert_close(weights_TK.cpu(), truth_TK)
    ids_TK = torch.randint(0, 61, (5000, 4))
    plan = routing_plan(ids_TK.cuda(), 60)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(plan, cpu.routing_plan(ids_TK, 60), strict=True))
    rows_RK, matrices = torch.randn(20_000, 64).bfloat16(), torch.randn(60, 128, 64).bfloat16()
    offsets_E = plan.offsets_E.cpu()
    out_RN = grouped_gemm(rows_RK.cuda(), matrices.cuda(), None, plan.offsets_E)
    assert relative_error(out_RN, oracle.grouped_gemm(rows_RK.double(), matrices.double(), None, offsets_E)) < 5e-3
    out_EMN = grouped_gemm_ragged_k(out_RN, rows_RK.cuda(), plan.offsets_E)
    truth_EMN = oracle.grouped_gemm_ragged_k(out_RN.cpu().double(), rows_RK.double(), offsets_E)
    assert relative_error(out_EMN, truth_EMN) < 5e-3
    weights_TK = torch.rand(5000, 4)
    out_TD = combine(out_RN, weights_TK.cuda(), plan)
    truth_TD = cpu.combine(out_RN.cpu().double(), weights_TK.double(), plan.inverse_R.cpu(), offsets_E)
    assert relative_error(out_TD, truth_TD) < 5e-3


def test_gradients_of_gather_and_combine_equal_the_cpus():
    ids_TK, hidden_TD, weights_TK = torch.randint(0, 61, (5000, 4)), torch.randn(5000, 600), torch.rand(5000, 4)
    results = {}
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).requires_grad_() for x in (hidden_TD, weights_TK)]
        plan = routing_plan(ids_TK.to(device), 60)
        out_TD = combine(gather(leaves[0], plan, 4).sin(), leaves[1], plan)
        results[device] = [out_TD, *torch.autograd.grad(out_TD.cos().sum(), leaves)]
    for ours, truth in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(ours.cpu(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [8, 2000])
def test_captured_in_a_cuda_graph(tokens):
    problem = make_problem(tokens, 256, 512).on("cuda").to(torch.bfloat16)
    kind = {"activation": "gelu_tanh", "gated": False}
    expected_TD = expert_ffn(*problem.arguments(), **kind)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_TD = expert_ffn(*problem.arguments(), **kind)
    problem.expert_ids_TK.copy_(problem.expert_ids_TK.flip(0))
    graph.replay()
    assert not torch.equal(out_TD, expected_TD)
    assert torch.equal(out_TD, expert_ffn(*problem.arguments(), **kind))


def test_training_is_captured_in_a_cuda_graph():
    problem = make_problem(**SIZES["tma"]).on("cuda").to(torch.bfloat16)
    leaves = [getattr(problem, name).requires_grad_() for name in TENSORS]

    def step():
        out_TD = expert_ffn(*problem.arguments(), activation="gelu_tanh", gated=False)
        return torch.autograd.grad(out_TD, leaves, problem.grad_TD)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients = step()
    graph.replay()
    assert all(torch.equal(ours, truth) for ours, truth in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_compiled_without_graph_breaks(size):
    problem = make_problem(**SIZES[size]).on("cuda").to(torch.bfloat16)
    expected = outputs_and_gradients(expert_ffn, problem)
    results = outputs_and_gradients(torch.compile(expert_ffn, fullgraph=True), problem)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_nothing_waits_for_the_device():
    problem = make_problem(**SIZES["tma"]).on("cuda").to(torch.bfloat16)
    outputs_and_gradients(expert_ffn, problem)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs_and_gradients(expert_ffn, problem)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tune_keeps_tiles_that_compute_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_CODEGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(trials, "MOST_WORKERS", 2)
    tokens, size = 1500, trials.LayerSize(256, 512, 5, 2, gated=False, dtype=torch.bfloat16)
    with trials.compile_pool() as pool:
        found = tune(size, tokens, gpu_of(torch.device("cuda", 0)), pool, seconds=15)
    try:
        assert 0 < sum(each.after_ms for each in found) <= sum(each.before_ms for each in found) < 100
        check_against_oracle(expert_ffn, make_problem(tokens, size.model, size.hidden).on("cuda"), size.dtype)
    finally:
        buckets_of.cache_clear()


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason="needs 40 GiB of GPU memory",
)
@pytest.mark.parametrize("offset", [0, 1], ids=["as it comes", "too unaligned for TMA"])
def test_past_2_to_the_31_elements(offset):
    tokens, model, hidden = 2**18 + 3, 64, 4096  # R * F = 2^31 and some
    problem = make_problem(8, model, hidden, 4).on("cuda").to(torch.bfloat16)
    memory = torch.empty(offset + tokens * model, dtype=torch.bfloat16, device="cuda")
    hidden_TD = memory[offset:].view(tokens, model)
    hidden_TD.copy_(problem.hidden_TD.repeat(tokens // 8 + 1, 1)[:tokens]).requires_grad_()
    ids_TK = problem.expert_ids_TK.repeat(tokens // 8 + 1, 1)[:tokens]
    weights_TK = problem.weights_TK.repeat(tokens // 8 + 1, 1)[:tokens]
    weights = (problem.up, problem.up_bias, problem.down, problem.down_bias)
    out_TD = expert_ffn(hidden_TD, ids_TK, weights_TK, *weights, activation="gelu_tanh", gated=False)
    out_TD.backward(torch.ones_like(out_TD))
    for whole_TD in (out_TD.detach(), hidden_TD.grad):
        assert relative_error(whole_TD[-8 - tokens % 8 : -(tokens % 8)], whole_TD[:8]) < 5e-3


@pytest.mark.parametrize(
    ("config_class", "model_class"), [(MixtralConfig, MixtralForCausalLM), (GptOssConfig, GptOssForCausalLM)]
)
def test_models_of_transformers_match_eager(config_class, model_class):
    register_experts_implementation()
    config = config_class(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, head_dim=32,
    )  # fmt: skip
    model = model_class(config).cuda()
    input_ids = torch.randint(0, 128, (4, 128), device="cuda")
    results = {}
    for implementation in ("eager", "moe_codegen"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        output = model(input_ids, labels=input_ids)
        output.loss.backward()
        results[implementation] = [output.logits.detach(), *(p.grad.clone() for p in model.parameters())]
    for eager, ours in zip(*results.values(), strict=True):
        assert relative_error(ours, eager) < 1e-4
