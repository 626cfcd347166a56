"""The contenders of the layer benchmarks compute the same layer, and one that does not is found out."""

import argparse

import pytest
import torch

from benchmarks import expert_layer
from benchmarks.contenders import CONTENDERS, DENSE, loop, make_layer
from benchmarks.shapes import LayerShape

SHAPES = [
    LayerShape("ungated", 16, 32, 4, 2, "gelu_tanh", gated=False, bias=True),
    LayerShape("gated", 16, 32, 4, 2, "silu", gated=True, bias=False),
]
OPTIONS = argparse.Namespace(device="cpu", repeats=2)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_contenders_agree_in_output_and_gradients(shape):
    layer = make_layer(shape, 24, "zipf", "cpu", torch.bfloat16)
    rows = expert_layer._rows(layer, "zipf", OPTIONS, None, backward=True, graph=False)
    outcome = {row["contender"]: row["p50 ms"] for row in rows}
    assert set(outcome) == set(CONTENDERS)
    absent = {name for name, time in outcome.items() if time == "not run: ModuleNotFoundError"}
    assert absent <= {"ScatterMoE", "MegaBlocks"}
    assert all(isinstance(outcome[name], float) for name in set(CONTENDERS) - absent), outcome


def test_an_expert_without_tokens_has_gradients_too():
    layer = make_layer(SHAPES[0], 1, "balanced", "cpu", torch.bfloat16)  # two of four experts
    rows = expert_layer._rows(layer, "balanced", OPTIONS, None, backward=True, graph=False)
    outcome = {row["contender"]: row["p50 ms"] for row in rows}
    assert isinstance(outcome["moe_codegen"], float), outcome
    assert isinstance(outcome["loop over experts"], float), outcome


def test_transformers_is_timed_for_thousands_of_rows():
    """With biases trained it would be refused: it sums their gradients in bf16."""
    layer = make_layer(SHAPES[0], 2048, "balanced", "cpu", torch.bfloat16)
    rows = expert_layer._rows(layer, "balanced", OPTIONS, None, backward=True, graph=False)
    (row,) = (row for row in rows if row["contender"] == "transformers grouped_mm")
    assert isinstance(row["p50 ms"], float), row


def test_a_wrong_gradient_is_refused(monkeypatch):
    def wrong(layer):
        right = loop(layer)
        return right._replace(run=lambda x_TD: right.run(x_TD) + x_TD - x_TD.detach())

    monkeypatch.setitem(expert_layer.CONTENDERS, DENSE + " but wrong", wrong)
    layer = make_layer(SHAPES[0], 24, "balanced", "cpu", torch.bfloat16)
    rows = expert_layer._rows(layer, "balanced", OPTIONS, None, backward=True, graph=False)
    assert rows[-1]["p50 ms"].startswith("refused: input's gradient off by")


def test_a_failure_is_told_and_does_not_end_the_run(monkeypatch):
    def broken(layer):
        raise RuntimeError("no")

    monkeypatch.setitem(expert_layer.CONTENDERS, expert_layer.OURS, broken)
    layer = make_layer(SHAPES[0], 4, "balanced", "cpu", torch.bfloat16)
    rows = expert_layer._rows(layer, "balanced", OPTIONS, None, backward=False, graph=False)
    assert (rows[0]["p50 ms"], rows[0]["reason"]) == ("not run: RuntimeError", "no")
    assert isinstance(rows[1]["p50 ms"], float)
