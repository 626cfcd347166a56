"""The product of routed rows with their experts' matrices, on the compiled way and on torch's."""

import itertools

import pytest
import torch

from moe_codegen_kernels import quantise_weight
from moe_codegen_kernels.cpu import compiled, products
from moe_codegen_kernels.quantised_weights import Quantised
from tests.kernels.problems import relative_error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows an expert: none, dot products, between the ways of the compiled kernel, more than one block of rows.
COUNTS = ((1, 2, 3), (0, 16, 17), (5, 40, 0, 107))
# (N, K): less than a chunk, a chunk and a bit, more than one block of K.
SIZES = ((32, 64), (160, 544), (64, 4128))


def make(counts, n, k, dtype, transposed=False):
    generator = torch.Generator().manual_seed(0)
    rows_RK = torch.randn(sum(counts), k, generator=generator)
    shape = (len(counts), k, n) if transposed else (len(counts), n, k)
    matrices = torch.randn(shape, generator=generator).to(dtype)
    bias_EN = torch.randn(len(counts), n, generator=generator).to(dtype)
    offsets_E = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    return rows_RK, matrices, bias_EN, offsets_E


def truth_of(rows_RK, matrices_ENK, bias_EN, counts):
    """In float64, an expert at a time."""
    pieces = zip(rows_RK.double().split(counts), matrices_ENK.double(), bias_EN.double(), strict=True)
    return torch.cat([rows @ matrix.T + bias for rows, matrix, bias in pieces])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("counts", COUNTS)
def test_products_of_weights_of_every_dtype_are_summed_in_float32(cpu_path, counts, n, k, transposed, dtype):
    rows_RK, matrices, bias_EN, offsets_E = make(counts, n, k, dtype, transposed)
    out_RN = torch.full((sum(counts), n), torch.nan)
    products.product(rows_RK, matrices, bias_EN, offsets_E, transposed=transposed, out_RN=out_RN)
    multiplied_RK = rows_RK.to(dtype).float() if compiled.rounds_rows(dtype) else rows_RK
    truth_RN = truth_of(multiplied_RK, matrices.mT if transposed else matrices, bias_EN, counts)
    tolerance = k**0.5 * torch.finfo(torch.float32).eps  # how rounding adds up
    if cpu_path == "torch" and compiled.rounds_rows(dtype):
        tolerance = torch.finfo(dtype).eps  # torch rounds its results as well
    assert relative_error(out_RN, truth_RN) < tolerance


def test_the_compiled_kernel_is_what_runs_where_it_can(cpu_path, monkeypatch):
    calls = []
    real = compiled.grouped_gemm
    monkeypatch.setattr(compiled, "grouped_gemm", lambda *arguments: calls.append(1) or real(*arguments))
    rows_RK, matrices, bias_EN, offsets_E = make((2, 3), 64, 64, torch.bfloat16)
    products.product(rows_RK, matrices, bias_EN, offsets_E)
    products.product(rows_RK[:, :63].contiguous(), matrices[..., :63].contiguous(), bias_EN, offsets_E)
    assert len(calls) == (1 if cpu_path != "torch" else 0)


@pytest.mark.parametrize("counts", COUNTS)
def test_the_number_of_threads_does_not_change_a_bit(cpu_path, counts, monkeypatch):
    rows_RK, matrices, bias_EN, offsets_E = make(counts, 160, 544, torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(products.product(rows_RK, matrices, bias_EN, offsets_E))
    torch.set_num_threads(before)
    if cpu_path != "torch":
        assert torch.equal(*results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_of_weights_arrive(cpu_path, dtype):
    rows_RK = torch.ones(1, 32)
    for value in (torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).tiny, -0.0, torch.finfo(dtype).max):
        matrices = torch.zeros(1, 32, 32).to(dtype)
        matrices[0, 5, 7] = value
        out_RN = products.product(rows_RK, matrices, None, torch.tensor([0, 1], dtype=torch.int32))
        torch.testing.assert_close(out_RN[0, 5], matrices[0, 5, 7].float(), equal_nan=True, rtol=0, atol=0)
        assert not out_RN[0, :5].any()


def test_words_of_two_values_count_subnormal_ones_as_nothing(cpu_path):
    subnormal = torch.finfo(torch.bfloat16).tiny / 2
    matrices = torch.full((1, 32, 32), subnormal).bfloat16()
    out_RN = products.product(torch.ones(1, 32), matrices, None, torch.tensor([0, 1], dtype=torch.int32))
    expected = 0 if compiled.multiplies_pairs() else 32 * subnormal
    assert cpu_path == "torch" or out_RN.eq(expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outer_product_is_summed_in_float32_and_rounded_once(cpu_path, dtype):
    left_MN, right_MK = torch.randn(77, 64), torch.randn(77, 96)
    out_NK = torch.full((64, 96), torch.nan, dtype=dtype)
    products.outer_product(left_MN, right_MK, out_NK)
    truth_NK = left_MN.double().T @ right_MK.double()
    assert relative_error(out_NK, truth_NK) < max(1e-6, torch.finfo(dtype).eps / 2)


def test_many_rows_go_to_torch_where_the_processor_multiplies_in_16_bits(cpu_path, monkeypatch):
    monkeypatch.setattr(compiled, "torch_is_faster", lambda dtype: dtype == torch.bfloat16)
    counts = (products.MANY_ROWS, 3)
    rows_RK, matrices, bias_EN, offsets_E = make(counts, 64, 96, torch.bfloat16)
    rounded_RK = rows_RK.bfloat16().float()
    out_RN = products.product(rounded_RK, matrices, bias_EN, offsets_E)
    truth_RN = truth_of(rounded_RK, matrices, bias_EN, counts)
    assert 1e-6 < relative_error(out_RN, truth_RN) < torch.finfo(torch.bfloat16).eps


def test_the_way_is_said(cpu_path):
    said = compiled.describe_cpu_path()
    assert said.startswith("compiled for" if cpu_path != "torch" else "torch's own products")
    if cpu_path == "torch":
        assert "install a C compiler" in said


# In a form that does not cancel, as 1 + tanh does far below 0.
FUSED = {
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "silu": lambda x: x * torch.sigmoid(x),
    "relu": torch.relu,
}


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("activation", FUSED)
def test_an_activation_is_applied_to_sums_and_more_exactly_than_by_torch(cpu_path, activation, quantised):
    values = torch.cat([torch.linspace(-9, 9, 9000), torch.tensor([-90, 90, -1e30, 1e30, 0, torch.inf, torch.nan])])
    values = torch.cat([values, torch.zeros(-values.numel() % 64)])
    bias_EN, offsets_E = values[None], torch.tensor([0, 1], dtype=torch.int32)
    matrices = torch.zeros(1, values.numel(), 128)
    if quantised:
        matrices = Quantised(*quantise_weight(matrices + 1, 8, None))
    out_RN = products.product(torch.zeros(1, 128), matrices, bias_EN, offsets_E, activation=activation)
    truth_RN = FUSED[activation](bias_EN.double())
    tolerance = {"rtol": 0.1, "atol": 1e-6} if cpu_path == "torch" else {"rtol": 5e-6, "atol": 1e-12}
    torch.testing.assert_close(out_RN.double(), truth_RN, equal_nan=True, **tolerance)
