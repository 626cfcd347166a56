"""route, routing_plan and tile_schedule as kernels, and the public parts built on them."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_codegen_kernels import cpu, oracle
from moe_codegen_kernels.gpu import parts, routing
from tests.kernels.gpu_path import GPU, use_tiles


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(0, 300),
    experts=st.sampled_from([1, 2, 8, 60]),
    top_k=st.integers(1, 3),
    block_m=st.sampled_from([16, 64]),
    one_expert=st.booleans(),
    seed=st.integers(0, 999),
)
def test_plan_and_schedule(tokens, experts, top_k, block_m, one_expert, seed):
    generator = torch.Generator().manual_seed(seed)
    ids_TK = torch.randint(0, experts + 1, (tokens, top_k), generator=generator)
    if one_expert:
        ids_TK[:] = experts - 1
    plan = routing.routing_plan(ids_TK, experts)
    for ours, truth in zip(plan, oracle.routing_plan(ids_TK, experts), strict=True):
        assert torch.equal(ours, truth)

    schedule = routing.tile_schedule(plan[2], ids_TK.numel(), block_m, processors=3)
    offsets = plan[2].tolist()
    counts = [end - start for start, end in itertools.pairwise(offsets)]
    longest_first = sorted(range(experts), key=lambda expert: -counts[expert])
    expected = [
        [expert, row, offsets[expert + 1]]
        for expert in longest_first
        for row in range(offsets[expert], offsets[expert + 1], block_m)
    ]
    head, entries = schedule.entries[: 1 + experts].tolist(), schedule.entries[1 + experts :].view(-1, 3)
    assert head == [len(expected), *longest_first]
    assert entries[: len(expected)].tolist() == expected
    assert len(expected) <= schedule.most_tiles


def test_a_plan_of_many_chunks():
    ids_TK = torch.randint(0, 200, (400, 2), generator=torch.Generator().manual_seed(0))
    for ours, truth in zip(routing.routing_plan(ids_TK, 199), oracle.routing_plan(ids_TK, 199), strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (6, 6), (60, 4), (1, 1)])
def test_route(experts, top_k, renormalise):
    logits_TE = torch.randn(70, experts)
    weights_TK, ids_TK = routing.route(logits_TE, top_k, renormalise)
    truth_TK, truth_ids_TK = cpu.route(logits_TE, top_k, renormalise)
    assert torch.equal(ids_TK, truth_ids_TK)
    torch.testing.assert_close(weights_TK, truth_TK, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("experts", [4, 5])
@pytest.mark.parametrize("bits", [0x7FC00000, -1, 0x7F800000, -0x800000, 0], ids=["nan", "-nan", "inf", "-inf", "0"])
def test_route_keeps_ids_distinct_and_in_range_whatever_the_logits(bits, experts):
    logits_TE = torch.full((3, experts), bits, dtype=torch.int32).view(torch.float32)
    _, ids_TK = routing.route(logits_TE, 4, True)
    assert ids_TK.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("path", ["pointer", "tma"])
def test_parts(monkeypatch, path):
    use_tiles(monkeypatch, path)
    ids_TK = torch.randint(0, 4, (30, 2), generator=torch.Generator().manual_seed(0))
    order_R, inverse_R, offsets_E = routing.routing_plan(ids_TK, 3)
    rows_RK, others_RN = torch.randn(60, 24).half(), torch.randn(60, 40).half()
    matrices, bias_EN = torch.randn(3, 40, 24).half(), torch.randn(3, 40).half()
    plan = (offsets_E, GPU)
    for matrices_ENK in (matrices, matrices.mT.contiguous().mT):
        out_RN = parts.grouped_gemm(rows_RK, matrices_ENK, bias_EN, *plan)
        truth_RN = oracle.grouped_gemm(rows_RK.float(), matrices.float(), bias_EN.float(), offsets_E)
        torch.testing.assert_close(out_RN.float(), truth_RN, rtol=2e-3, atol=2e-2)
    out_ENK = parts.grouped_gemm_ragged_k(others_RN, rows_RK, *plan)
    truth_ENK = oracle.grouped_gemm_ragged_k(others_RN.float(), rows_RK.float(), offsets_E)
    torch.testing.assert_close(out_ENK.float(), truth_ENK, rtol=2e-3, atol=2e-2)
    assert torch.equal(order_R[inverse_R.long()], torch.arange(60, dtype=torch.int32))


def test_gather_and_combine():
    """600 columns: more than one block of each kernel. Rows of no expert hold NaN, and their gradients are 0."""
    ids_TK = torch.randint(0, 4, (30, 2), generator=torch.Generator().manual_seed(0))
    order_R, inverse_R, offsets_E = routing.routing_plan(ids_TK, 3)
    hidden_TD, grad_TD, weights_TK = torch.randn(30, 600), torch.randn(30, 600), torch.randn(30, 2)
    rows_RD = parts.gather(hidden_TD, order_R, offsets_E, 2)
    assert torch.equal(rows_RD, oracle.gather(hidden_TD, order_R, offsets_E, 2))
    rows_RD[offsets_E[-1] :] = float("nan")
    leaves = rows_RD.clone().requires_grad_(), weights_TK.clone().requires_grad_()
    truth_TD = oracle.combine(*leaves, inverse_R, offsets_E)
    torch.testing.assert_close(parts.combine(rows_RD, weights_TK, inverse_R, offsets_E), truth_TD)
    gradients = parts.combine_backward(grad_TD, rows_RD, weights_TK, order_R, offsets_E)
    for ours, truth in zip(gradients, torch.autograd.grad(truth_TD, leaves, grad_TD), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)
