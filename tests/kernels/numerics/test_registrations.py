"""The functions registered for CUDA hand their arguments on rightly: on CPU tensors they give what the CPU's give."""

import pytest
import torch

from moe_codegen_kernels import grouped, quantise_weight, quantised, routing, rows
from moe_codegen_kernels.expert_ffn import expert_ffn_backward_cuda, expert_ffn_cuda
from tests.kernels.gpu_path import GPU, use_tiles
from tests.kernels.problems import make_problem


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    use_tiles(monkeypatch, "tma")
    for module in (expert_ffn_cuda.__globals__, vars(grouped), vars(quantised)):
        monkeypatch.setitem(module, "gpu_of", lambda device: GPU)


def _close(ours, truth):
    torch.testing.assert_close(tuple(ours), tuple(truth), rtol=2e-3, atol=2e-3)


def test_routing():
    for dtype in (torch.float32, torch.float64):
        logits_TE = torch.randn(20, 5, dtype=dtype)
        _close(routing.route_cuda(logits_TE, 2, True), torch.ops.moe_codegen.route(logits_TE, 2, True))
    ids_TK = torch.randint(0, 5, (20, 2))
    _close(routing.routing_plan_cuda(ids_TK, 4), torch.ops.moe_codegen.routing_plan(ids_TK, 4))


def test_parts():
    order_R, _, offsets_E = plan = torch.ops.moe_codegen.routing_plan(torch.randint(0, 5, (20, 2)), 4)
    rows_RK, matrices, bias_EN = torch.randn(40, 16), torch.randn(4, 24, 16), torch.randn(4, 24)
    gemm = (rows_RK, matrices, bias_EN, offsets_E)
    out_RN = torch.ops.moe_codegen.grouped_gemm(*gemm)
    _close([grouped.grouped_gemm_cuda(*gemm)], [out_RN])
    ragged = (rows_RK, out_RN, offsets_E)
    _close([grouped.grouped_gemm_ragged_k_cuda(*ragged)], [torch.ops.moe_codegen.grouped_gemm_ragged_k(*ragged)])
    gathered = (torch.randn(20, 16), *plan, 2)
    _close([rows.gather_cuda(*gathered)], [torch.ops.moe_codegen.gather(*gathered)])
    combined = (out_RN, torch.rand(20, 2), *plan)
    out_TN = torch.ops.moe_codegen.combine(*combined)
    _close([rows.combine_cuda(*combined)], [out_TN])
    backward = (out_TN, *combined[:2], order_R, offsets_E)
    _close(rows.combine_backward_cuda(*backward), torch.ops.moe_codegen.combine_backward(*backward))


@pytest.mark.parametrize("tokens", [20, 65])
def test_quantised_expert_ffn(tokens):
    problem = make_problem(tokens, model=64, hidden=96).to(torch.float32)
    up, down = quantise_weight(problem.up, 8), quantise_weight(problem.down, 8)
    arguments = (*problem.routed(), *up, problem.up_bias, *down, problem.down_bias, "silu", False)
    _close([quantised.quantised_expert_ffn_cuda(*arguments)], [torch.ops.moe_codegen.quantised_expert_ffn(*arguments)])


@pytest.mark.parametrize("recompute", [False, True])
def test_expert_ffn(recompute):
    problem = make_problem(gated=True).to(torch.float32)
    forward = (*problem.arguments(), "silu", True, True, recompute)
    ours, truth = expert_ffn_cuda(*forward), torch.ops.moe_codegen.expert_ffn(*forward)
    _close(ours, truth)
    hidden_TD, _, *others = problem.arguments()
    backward = (problem.grad_TD, hidden_TD, *others, *truth[1:], "silu", True, [True] * 6)
    _close(expert_ffn_backward_cuda(*backward), torch.ops.moe_codegen.expert_ffn_backward(*backward))
