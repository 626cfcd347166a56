"""The public parts of expert_ffn on the CPU: route, routing_plan, gather, grouped_gemm, combine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen_kernels import combine, gather, grouped_gemm, grouped_gemm_ragged_k, oracle, route, routing_plan


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 40), experts=st.integers(1, 9), top_k=st.integers(1, 3), seed=st.integers(0, 999))
def test_plan_equals_the_oracle(tokens, experts, top_k, seed):
    ids_TK = torch.randint(0, experts + 1, (tokens, top_k), generator=torch.Generator().manual_seed(seed))
    for ours, truth in zip(routing_plan(ids_TK, experts), oracle.routing_plan(ids_TK, experts), strict=True):
        assert ours.dtype == torch.int32
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_route_equals_the_oracle(renormalise, dtype):
    logits_TE = torch.randn(50, 8).to(dtype).requires_grad_()
    weights_TK, ids_TK = route(logits_TE, 2, renormalise)
    truth_TE = logits_TE.detach().double().requires_grad_()
    truth_TK, truth_ids_TK = oracle.route(truth_TE, 2, renormalise)
    assert weights_TK.dtype == torch.float32
    assert torch.equal(ids_TK, truth_ids_TK)
    torch.testing.assert_close(weights_TK.double(), truth_TK, rtol=1e-6, atol=1e-6)
    grad_TK = torch.randn(50, 2)
    weights_TK.backward(grad_TK)
    truth_TK.backward(grad_TK.double())
    torch.testing.assert_close(
        logits_TE.grad.double(), truth_TE.grad, rtol=1e-2, atol=1e-6 if dtype == torch.float32 else 2e-3
    )


@pytest.mark.parametrize("renormalise", [True, False])
def test_route_gradcheck(renormalise):
    logits_TE = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: route(x, 3, renormalise)[0], logits_TE)


def test_top_1_renormalised_teaches_the_router_nothing():
    logits_TE = torch.randn(5, 6, requires_grad=True)
    weights_TK, _ = route(logits_TE, 1, renormalise=True)
    weights_TK.sum().backward()
    assert torch.equal(weights_TK, torch.ones(5, 1))
    assert logits_TE.grad.abs().max() == 0


def _rows(experts=4, rows=21, inner=6):
    ids_TK = torch.randint(0, experts + 1, (rows // 3, 3))
    plan = routing_plan(ids_TK, experts)
    return torch.randn(rows, inner, dtype=torch.float64), plan


@pytest.mark.parametrize("bias", [True, False])
def test_grouped_gemm(bias):
    rows_RK, plan = _rows()
    matrices = torch.randn(4, 5, 6, dtype=torch.float64)
    bias_EN = torch.randn(4, 5, dtype=torch.float64) if bias else None
    out_RN = grouped_gemm(rows_RK, matrices, bias_EN, plan.offsets_E)
    torch.testing.assert_close(out_RN, oracle.grouped_gemm(rows_RK, matrices, bias_EN, plan.offsets_E))
    tensors = [x if x is None else x.requires_grad_() for x in (rows_RK, matrices, bias_EN)]
    assert torch.autograd.gradcheck(lambda *x: grouped_gemm(*x, plan.offsets_E), tensors)


def test_grouped_gemm_of_transposed_matrices():
    rows_RK, plan = _rows()
    stored_EKN = torch.randn(4, 6, 5, dtype=torch.float64)
    out_RN = grouped_gemm(rows_RK, stored_EKN.mT, None, plan.offsets_E)
    torch.testing.assert_close(out_RN, oracle.grouped_gemm(rows_RK, stored_EKN.mT, None, plan.offsets_E))
    tensors = (rows_RK.requires_grad_(), stored_EKN.requires_grad_())
    assert torch.autograd.gradcheck(lambda rows, stored: grouped_gemm(rows, stored.mT, None, plan.offsets_E), tensors)
    grouped_gemm(
        *tensors[:1], matrices := stored_EKN.mT.detach().requires_grad_(), None, plan.offsets_E
    ).sum().backward()
    assert matrices.grad.stride() == matrices.stride()


def test_grouped_gemm_under_autocast():
    rows_RK, plan = _rows()
    rows_RK, matrices, bias_EN = rows_RK.float(), torch.randn(4, 5, 6), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_RN = grouped_gemm(rows_RK, matrices, bias_EN, plan.offsets_E)
    truth_RN = oracle.grouped_gemm(rows_RK, matrices, bias_EN, plan.offsets_E)
    assert out_RN.dtype == torch.bfloat16
    assert 0 < (out_RN - truth_RN).norm() / truth_RN.norm() < 1e-2


def test_grouped_gemm_ragged_k():
    rows_RK, plan = _rows()
    others_RN = torch.randn(21, 3, dtype=torch.float64)
    out_EMN = grouped_gemm_ragged_k(rows_RK, others_RN, plan.offsets_E)
    torch.testing.assert_close(out_EMN, oracle.grouped_gemm_ragged_k(rows_RK, others_RN, plan.offsets_E))


def test_combine():
    rows_RD, plan = _rows()
    weights_TK = torch.randn(3, 7, dtype=torch.float64).T  # in another order than results have
    rows_RD[plan.offsets_E[-1] :] = float("nan")  # rows of no expert may hold anything
    truth_TD = oracle.combine(rows_RD, weights_TK, plan.inverse_R, plan.offsets_E)
    torch.testing.assert_close(combine(rows_RD, weights_TK, plan), truth_TD)
    finite_RD = rows_RD.nan_to_num().requires_grad_()
    weights_TK.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: combine(*x, plan), (finite_RD, weights_TK))
    combine(rows_RD.requires_grad_(), weights_TK, plan).sum().backward()
    assert not rows_RD.grad[plan.offsets_E[-1] :].any()
    assert weights_TK.grad.isfinite().all()


def test_gather():
    _, plan = _rows()
    hidden_TD = torch.randn(7, 6, dtype=torch.float64)
    rows_RD = gather(hidden_TD, plan, 3)
    torch.testing.assert_close(rows_RD, oracle.gather(hidden_TD, plan.order_R, plan.offsets_E, 3))
    assert not rows_RD[plan.offsets_E[-1] :].any()
    assert torch.autograd.gradcheck(lambda x: gather(x, plan, 3), hidden_TD.requires_grad_())


def test_opcheck():
    logits_TE = torch.randn(5, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.moe_codegen.route.default, (logits_TE, 2, True))
    torch.library.opcheck(torch.ops.moe_codegen.routing_plan.default, (torch.zeros(3, 2).long(), 4))
    rows_RK, plan = _rows()
    matrices = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    rows_RK.requires_grad_()
    torch.library.opcheck(torch.ops.moe_codegen.grouped_gemm.default, (rows_RK, matrices, None, plan.offsets_E))
    torch.library.opcheck(torch.ops.moe_codegen.gather.default, (rows_RK[:7], *plan, 3))
    weights_TK = torch.rand(7, 3).double().requires_grad_()
    torch.library.opcheck(torch.ops.moe_codegen.combine.default, (rows_RK, weights_TK, *plan))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: route(torch.zeros(3, 2), 3), "top_k=3 is not within"),
        (lambda: route(torch.zeros(3), 1), "expected \\(tokens, experts\\)"),
        (lambda: routing_plan(torch.zeros(3), 3), "expected \\(tokens, top_k\\)"),
        (lambda: grouped_gemm(torch.zeros(3, 2), torch.zeros(4, 5, 6), None, torch.zeros(5)), "do not fit"),
        (
            lambda: grouped_gemm_ragged_k(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(5)),
            "expected equal",
        ),
        (
            lambda: grouped_gemm(torch.zeros(3, 6), torch.zeros(4, 5, 6), torch.zeros(4), torch.zeros(5)),
            "bias_EN \\(4,\\)",
        ),
        (lambda: grouped_gemm(torch.zeros(3, 6), torch.zeros(4, 5, 6).half(), None, torch.zeros(5)), "cast one"),
        (lambda: combine(torch.zeros(3, 2), torch.zeros(4, 2), _rows()[1]), "R = T\\*K"),
        (lambda: gather(torch.zeros(3, 2), _rows()[1], 3), "a plan of 21 rows"),
    ],
)
def test_errors_say_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
