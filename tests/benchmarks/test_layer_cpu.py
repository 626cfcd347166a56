"""The CPU's layer benchmarks run on layers of another size than theirs, to the last contender."""

import argparse

import pytest

from benchmarks import expert_layer_cpu, quantised_layer
from benchmarks.shapes import SHAPES, LayerShape


@pytest.fixture
def tiny(monkeypatch):
    shape = LayerShape("tiny", 128, 256, 4, 2, "gelu_tanh", gated=False, bias=True)
    monkeypatch.setitem(SHAPES, shape.name, shape)
    for benchmark in (expert_layer_cpu, quantised_layer):
        monkeypatch.setattr(benchmark, "read_bandwidth", lambda: 1e10)
    monkeypatch.setattr(expert_layer_cpu, "_peak", lambda dtype, seconds: 1e11)
    return argparse.Namespace(
        shape="tiny", tokens=[1, 8], dtypes=["fp32", "bf16"], seconds=0.01, repeats=1, out=None, device="cpu"
    )


def test_the_layer_in_8_and_4_bits_beside_torchs(tiny):
    rows = quantised_layer.run(tiny).rows
    assert [row["tokens"] for row in rows] == [1, 8]
    assert all(row["bf16 / int8"] > 0 and row["bf16 / torch int4"] > 0 for row in rows)


def test_the_layer_beside_its_peers_forward_and_backward(tiny):
    forward, training = expert_layer_cpu.run(tiny).rows, expert_layer_cpu.train(tiny).rows
    assert {row["contender"] for row in forward} >= {*expert_layer_cpu.PEERS, expert_layer_cpu.OURS}
    assert {row["contender"] for row in training} == {expert_layer_cpu.OURS, expert_layer_cpu.DENSE}
