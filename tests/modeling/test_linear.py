"""A mixture's dense products at inference: the compiled kernel's, and the numbers are those of float32."""

import statistics

import torch
from torch import nn

from moe_codegen_kernels import linear
from tests.modeling.mixture import mixture, relative_error, tokens


def test_every_dense_product_of_a_bf16_mixture_runs_through_linear(monkeypatch):
    calls = []
    monkeypatch.setattr("moe_codegen.modeling.linear.linear", lambda *given: calls.append(1) or linear(*given))
    model = mixture("gpt_bigcode")
    expected = model(tokens()).logits
    calls.clear()
    with torch.no_grad():
        logits = model.bfloat16()(tokens()).logits
    assert len(calls) == sum(isinstance(module, nn.Linear) for module in model.modules())
    # Where two experts are as good as each other, rounding can choose: of one token of many, not of half of them.
    errors = [relative_error(*each) for each in zip(logits.float()[0], expected[0], strict=True)]
    assert statistics.median(errors) < 0.02


def test_a_mixture_learns_through_it_in_bf16():
    model = mixture("gpt_bigcode").bfloat16().train()
    model(tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
