"""Weights of 8 and 4 bits: storage against an independent computation, and how far they are from what they were."""

import pytest
import torch

from moe_codegen_kernels import dequantise, oracle, quantise_weight
from moe_codegen_kernels.quantised_weights import round_to, scales_of

FORMATS = [(8, None), (8, 32), (4, None), (4, 32), (4, 64)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_what_is_stored_reads_back_as_the_definition_says(bits, group_size):
    stored, scales = quantise_weight(normal(6, 128), bits, group_size)
    assert (stored.dtype, stored.shape) == ((torch.int8, (6, 128)) if bits == 8 else (torch.uint8, (6, 64)))
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (6, 128 // (group_size or 128)))
    assert torch.equal(dequantise(stored, scales, torch.float64), oracle.dequantise(stored, scales))
    assert torch.equal(dequantise(stored, scales, torch.bfloat16), oracle.dequantise(stored, scales).bfloat16())


@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_each_weight_becomes_the_nearest_value_its_group_can_hold(bits, group_size):
    weight = normal(5, 64)
    stored, scales = quantise_weight(weight, bits, group_size)
    candidates = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float64)
    scale_of = scales.double().repeat_interleave(64 // scales.shape[1], dim=1)
    distance = (weight.double()[..., None] - scale_of[..., None] * candidates).abs().amin(dim=-1)
    error = (dequantise(stored, scales, torch.float64) - weight.double()).abs()
    # The division is in float32: of two values that are equally near it may take either.
    torch.testing.assert_close(error, distance, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("bits", "group_size", "limit"), [(8, None, 0.011), (4, 32, 0.09), (4, 128, 0.11)])
def test_the_relative_error_of_normal_weights(bits, group_size, limit):
    weight = normal(256, 512)
    wide = dequantise(*quantise_weight(weight, bits, group_size))
    assert ((wide - weight).norm() / weight.norm()).item() < limit


@pytest.mark.parametrize("bits", [8, 4])
def test_values_that_the_format_holds_come_back_exactly(bits):
    q = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float32)
    weight = 0.375 * q.repeat(3, 256 // len(q))
    assert torch.equal(dequantise(*quantise_weight(weight, bits)), weight)


def test_a_group_of_zeros_stays_zero_and_disturbs_no_other():
    weight = normal(2, 64)
    weight[0, :32] = 0
    wide = dequantise(*quantise_weight(weight, 4, 32))
    assert not wide[0, :32].any()
    assert torch.equal(wide[:, 32:], dequantise(*quantise_weight(weight[:, 32:], 4, 32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_many_rows_of_any_dtype_are_rounded_as_one_by_one_and_left_alone(dtype):
    weight = normal(3, 1100, 32).to(dtype)
    before = weight.clone()
    stored, scales = quantise_weight(weight, 4, 32)
    for expert in range(3):
        assert torch.equal(scales[expert], scales_of(weight[expert], 4, 32))
        assert torch.equal(stored[expert], round_to(weight[expert], scales[expert], 4))
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((normal(2, 64), 3), "bits=3 is not supported; use 8 or 4"),
        ((normal(2, 96), 4, 64), "group_size=64 does not divide rows of 96; .* such as 32"),
        ((normal(2, 96), 4, 48), "group_size=48 is no multiple of 32"),
        ((normal(2, 80), 4), "rows of 80 are no multiple of 32"),
        ((normal(2, 64) / 0, 8), "NaN or infinite"),
        ((torch.full((2, 64), float("nan")), 4, 32), "NaN or infinite"),
    ],
)
def test_what_cannot_be_quantised_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantise_weight(*arguments)
