"""The losses that keep experts balanced and routers finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_codegen.moe import load_balancing_loss, router_z_loss

LOSSES = [lambda logits, weights: load_balancing_loss(logits, 2, weights), router_z_loss]


@st.composite
def shapes(draw):
    experts = draw(st.integers(1, 9))
    return draw(st.integers(1, 20)), experts, draw(st.integers(1, experts))


def random_logits(tokens, experts, seed=0):
    return 3 * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))


@given(shapes())
def test_evenly_spread_tokens_give_exactly_one_for_every_k(shape):
    _, experts, top_k = shape
    # Token t prefers experts t, t+1, ..: over E tokens each expert is chosen K times, with equal mean probability.
    logits = torch.stack([torch.linspace(1, 0, experts).roll(shift) for shift in range(experts)])
    torch.testing.assert_close(load_balancing_loss(logits, top_k), torch.tensor(1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("experts", [2, 5, 8])
def test_all_tokens_on_one_expert_give_the_number_of_experts(experts):
    logits = torch.zeros(7, experts)
    logits[:, 1] = 100.0
    assert load_balancing_loss(logits, top_k=1).item() == experts


@given(shapes(), st.integers(0, 3))
def test_the_balancing_loss_is_its_equation(shape, seed):
    tokens, experts, top_k = shape
    logits = random_logits(tokens, experts, seed)
    probabilities = logits.double().softmax(-1)
    count = [0] * experts
    for row in probabilities.tolist():
        for expert in sorted(range(experts), key=lambda e: -row[e])[:top_k]:
            count[expert] += 1
    expected = sum(experts * count[e] / (tokens * top_k) * probabilities[:, e].mean().item() for e in range(experts))
    assert load_balancing_loss(logits, top_k).item() == pytest.approx(expected, rel=1e-5)


@given(shapes(), st.integers(0, 3))
def test_the_z_loss_is_its_equation(shape, seed):
    tokens, experts, _ = shape
    logits = random_logits(tokens, experts, seed)
    expected = logits.double().exp().sum(-1).log().square().mean().item()
    assert router_z_loss(logits).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_counts_for_nothing(loss):
    logits = random_logits(10, 4)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    torch.testing.assert_close(loss(logits, mask), loss(logits[mask.bool()], None))
    assert loss(logits, torch.zeros(10)).item() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_are_fp32_under_autocast_and_for_bf16_logits(loss):
    logits, mask = random_logits(50, 4), torch.ones(50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, mask), loss(logits, None), rtol=1e-6, atol=0)
    rounded = logits.bfloat16()
    torch.testing.assert_close(loss(rounded, mask), loss(rounded.float(), mask), rtol=1e-6, atol=0)


def test_balancing_moves_probability_away_from_the_busiest_expert():
    logits = torch.zeros(6, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(load_balancing_loss(logits + torch.tensor([1.0, 0, 0]), 1), logits)
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 1:] < 0).all()
