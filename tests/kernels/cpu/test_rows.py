"""Rows on their way to the products and back, on each way there is: which go where, and how they are rounded."""

import pytest
import torch

from moe_codegen_kernels import oracle
from moe_codegen_kernels.cpu import parts, routing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_plan_of_ids_that_are_no_experts(cpu_path, dtype):
    ids_TK = torch.tensor([[2, 7], [0, 2], [3, 0], [2, 1]], dtype=dtype)
    plan = routing.routing_plan(ids_TK, 3)
    for found, expected in zip(plan, oracle.routing_plan(ids_TK, 3), strict=True):
        assert found.dtype == torch.int32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("columns", [1, 19, 64, 2048])  # within a vector, across its end, and worth several threads
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_and_combine(cpu_path, dtype, columns):
    generator = torch.Generator().manual_seed(0)
    ids_TK = torch.randint(0, 6, (40, 3), generator=generator)  # 5 is no expert
    plan = routing.routing_plan(ids_TK, 5)
    hidden_TD = torch.randn(40, columns, generator=generator).to(dtype)
    rows_RD = parts.gather_rows(hidden_TD, plan.order_R, 3)
    assert torch.equal(rows_RD, hidden_TD.float()[plan.order_R // 3])
    weights_TK = torch.rand(40, 3, generator=generator)
    rows_RD[plan.offsets_E[-1] :] = float("nan") if cpu_path != "torch" else 0.0  # torch's way wants them written
    out_TD = parts.combine(rows_RD, weights_TK, plan.inverse_R, plan.offsets_E, dtype)
    expected_TD = oracle.combine(rows_RD.double(), weights_TK.double(), plan.inverse_R, plan.offsets_E)
    assert out_TD.dtype == dtype
    torch.testing.assert_close(out_TD, expected_TD.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_value_of_16_bits_comes_back_as_it_was(cpu_path, dtype):
    values_TD = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    plan = routing.routing_plan(torch.zeros(2**16, 1, dtype=torch.int64), 1)
    rows_RD = parts.gather_rows(values_TD, plan.order_R, 1)
    out_TD = parts.combine(rows_RD, torch.ones(2**16, 1), plan.inverse_R, plan.offsets_E, dtype)
    assert torch.equal(out_TD.isnan(), values_TD.isnan())
    is_number = ~values_TD.isnan()
    assert torch.equal(out_TD[is_number], values_TD[is_number])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_rounded_to_nearest_even(cpu_path, dtype):
    step = torch.finfo(dtype).eps
    wanted = {1 + step / 2: 1.0, 1 + 3 * step / 2: 1 + 2 * step, 1 + step * 0.51: 1 + step, 1e39: float("inf")}
    plan = routing.routing_plan(torch.zeros(len(wanted), 1, dtype=torch.int64), 1)
    rows_RD = torch.tensor(list(wanted))[:, None]
    out_TD = parts.combine(rows_RD, torch.ones(len(wanted), 1), plan.inverse_R, plan.offsets_E, dtype)
    assert out_TD[:, 0].tolist() == list(wanted.values())


def test_a_plan_of_wider_integers_that_lie_apart(cpu_path):
    order_R, inverse_R = (torch.tensor([[1, 9], [0, 9]])[:, 0] for _ in range(2))
    hidden_TD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows_RD = parts.gather_rows(hidden_TD, order_R, 1)
    assert torch.equal(rows_RD, hidden_TD.flip(0))
    offsets_E = torch.tensor([0, 2])
    assert torch.equal(parts.combine(rows_RD, torch.ones(2, 1), inverse_R, offsets_E), hidden_TD)
