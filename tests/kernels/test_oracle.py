"""The oracle is right: its whole equals its parts, and its parts equal torch's own words for them."""

import pytest
import torch

from moe_codegen_kernels import oracle
from moe_codegen_kernels.activations import ACTIVATIONS, activate, activate_backward
from tests.kernels.problems import LOADS, make_problem


@pytest.mark.parametrize("load", LOADS)
def test_the_whole_is_its_parts(load):
    problem = make_problem(load=load)
    order_R, inverse_R, offsets_E = oracle.routing_plan(problem.expert_ids_TK, problem.up.shape[0])
    x_RD = problem.hidden_TD[order_R // 2]
    h_RF = oracle.grouped_gemm(x_RD, problem.up, problem.up_bias, offsets_E)
    a_RF = activate(problem.activation, h_RF)
    y_RD = oracle.grouped_gemm(a_RF, problem.down, problem.down_bias, offsets_E)
    parts_TD = oracle.combine(y_RD, problem.weights_TK, inverse_R, offsets_E)
    whole_TD = oracle.expert_ffn(*problem.arguments(), activation=problem.activation, gated=False)
    torch.testing.assert_close(parts_TD, whole_TD, rtol=1e-12, atol=1e-12)


def test_ragged_k_is_the_gradient_of_ragged_m():
    problem = make_problem(load="sentinels")
    _, _, offsets_E = oracle.routing_plan(problem.expert_ids_TK, problem.up.shape[0])
    rows_RD = torch.randn(problem.expert_ids_TK.numel(), 24, dtype=torch.float64)
    up = problem.up.clone().requires_grad_()
    out_RF = oracle.grouped_gemm(rows_RD, up, None, offsets_E)
    grad_RF = torch.randn_like(out_RF)
    out_RF.backward(grad_RF)
    torch.testing.assert_close(oracle.grouped_gemm_ragged_k(grad_RF, rows_RD, offsets_E), up.grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_gradients(activation):
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    grad = torch.linspace(1, 2, 101, dtype=torch.float64)
    activate(activation, x).backward(grad)
    torch.testing.assert_close(activate_backward(activation, grad, x.detach()), x.grad)
