"""The launchers' own behaviour: how much they launch, when they compile again, and that they never ask the device."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ahead_of_time import compile_layer, compiling_for
from benchmarks.shapes import SHAPES, LayerShape

SMALL = LayerShape("small", 128, 256, 4, 2, "gelu_tanh", gated=False, bias=True)
FORWARD = ["count", "scan", "place", "schedule", "gather", "up", "linear", "combine"]
BACKWARD = [
    "schedule", "gather", "gather_gradient", "down_gradient", "weight_gradient", "sum_partials", "sum_partials",
    "ragged_k", "ragged_k", "linear", "combine",
]  # fmt: skip


def _names(recorder):
    return [launch.name.removesuffix("_kernel") for launch in recorder.launches]


def test_a_layer_is_this_many_launches():
    assert _names(compile_layer("sm_90", SMALL, 4096, torch.bfloat16, trains=True)) == FORWARD + BACKWARD


def test_the_pointer_path_gathers_as_it_loads():
    names = _names(compile_layer("sm_80", SMALL, 4096, torch.bfloat16, trains=False))
    assert names == [name for name in FORWARD if name != "gather"]


@pytest.mark.parametrize("tokens", [1, 64])
def test_decode_is_three_launches(tokens):
    names = _names(compile_layer("sm_90", SMALL, tokens, torch.bfloat16, trains=False))
    assert names == ["decode_up", "decode_down", "decode_combine"]


def test_another_batch_size_compiles_nothing_anew():
    sizes = (4096, 4097, 5000, 6001, 7777, 8192, 16384)
    kernels = [set(compile_layer("sm_90", SMALL, tokens, torch.bfloat16, trains=True).kernels) for tokens in sizes]
    assert all(later == kernels[0] for later in kernels[1:])


def test_no_host_synchronisation():
    """In a process of its own: a made-up device stays registered, and disturbs torch's own checks."""
    program = Path(__file__).parent / "no_host_sync.py"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SHAPES)
def test_every_measured_shape_compiles(name):
    with compiling_for("sm_90"):
        names = _names(compile_layer("sm_90", SHAPES[name], 8192, torch.bfloat16, trains=False))
    assert names == FORWARD
