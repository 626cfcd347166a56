"""The launchers' own behaviour: how much they launch, when they compile again, and that they never ask the device."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.ahead_of_time import compile_layer, compile_quantised_layer, compiling_for, gpu_without_device
from benchmarks.launch_rules import check_launch, tensor_map_faults
from benchmarks.shapes import SHAPES, LayerShape
from moe_codegen_kernels.gpu import parts, routing, tma

SMALL = LayerShape("small", 128, 256, 4, 2, "gelu_tanh", gated=False, bias=True)
FORWARD = ["count", "scan", "place", "schedule", "gather", "up", "linear", "combine"]
BACKWARD = [
    "schedule", "gather", "gather_gradient", "down_gradient", "routing_weight_gradient", "sum_partials", "sum_partials",
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


@pytest.mark.parametrize("bits", [8, 4])
def test_decode_of_quantised_weights_is_as_many(bits):
    names = _names(compile_quantised_layer("sm_90", SMALL, 8, torch.bfloat16, bits))
    assert names == ["decode_up", "decode_down", "decode_combine"]


def test_another_batch_size_compiles_nothing_anew():
    sizes = (4096, 4097, 5000, 6001, 7777, 8192, 16384)
    kernels = [set(compile_layer("sm_90", SMALL, tokens, torch.bfloat16, trains=True).kernels) for tokens in sizes]
    assert all(later == kernels[0] for later in kernels[1:])


def test_what_tma_reads():
    """Rows of 16-bit elements, one after the other in memory, that begin at multiples of 16 bytes."""
    read, *refused = (
        torch.empty(64, 64, dtype=torch.bfloat16),
        torch.empty(64, 64, dtype=torch.bfloat16)[:, ::8],
        torch.empty(64, 12, dtype=torch.bfloat16),
        torch.empty(64, 1, dtype=torch.bfloat16),
        torch.empty(64 * 64 + 1, dtype=torch.bfloat16)[1:].view(64, 64),
        torch.empty(64, 64),
    )
    assert tma.fits(read, read.mT)
    assert not any(tma.fits(read, other) for other in refused)


@pytest.mark.parametrize(("inner", "columns"), [(1, 64), (64, 1), (64, 12), (64, 64)])
def test_the_parts_launch_whatever_tma_refuses(inner, columns):
    """Rows of 2 and 24 bytes are not a multiple of 16: a bias gradient, for one, is a product with a single column."""
    rows, gpu = 4096, gpu_without_device("sm_90")
    left, right = (torch.empty(rows, width, dtype=torch.bfloat16) for width in (inner, columns))
    matrices = torch.empty(4, columns, inner, dtype=torch.bfloat16)
    offsets_E = torch.empty(5, dtype=torch.int32)
    with compiling_for("sm_90") as recorder:
        parts.grouped_gemm(left, matrices, None, offsets_E, gpu)
        parts.grouped_gemm_ragged_k(left, right, offsets_E, gpu)
    assert _names(recorder) == ["schedule", "linear", "zero_unrouted", "schedule", "ragged_k"]


def test_gather_and_combine_compile():
    tokens, rows_RD, weights_TK = torch.empty(512, 96), torch.empty(1024, 96), torch.empty(512, 2)
    order_R, offsets_E = torch.empty(1024, dtype=torch.int32), torch.empty(5, dtype=torch.int32)
    with compiling_for("sm_90") as recorder:
        parts.gather(tokens, order_R, offsets_E, 2)
        parts.combine(rows_RD, weights_TK, order_R, offsets_E)
        parts.combine_backward(tokens, rows_RD, weights_TK, order_R, offsets_E)
    assert _names(recorder) == ["gather", "zero_unrouted", "combine", "combine_gradients"]


def test_the_router_compiles():
    with compiling_for("sm_90") as recorder:
        routing.route(torch.empty(5000, 60), 4, True)
    assert _names(recorder) == ["route"]


def test_no_rows_launch_no_gemm():
    grids = {
        launch.name: launch.grid for launch in compile_layer("sm_90", SMALL, 0, torch.bfloat16, trains=True).launches
    }
    assert {name for name, grid in grids.items() if math.prod(grid) > 0 and "kernel" in name} == {
        "scan_kernel", "schedule_kernel", "sum_partials_kernel", "ragged_k_kernel",
    }  # fmt: skip


def _descriptor(columns=64, box=(16, 64)):
    return TensorDescriptor(torch.empty(64, columns, dtype=torch.bfloat16), [64, columns], [columns, 1], list(box))


@pytest.mark.parametrize(
    ("descriptor", "box", "rule"),
    [
        (_descriptor(), [512, 64], "box extents"),
        (_descriptor(columns=128, box=(16, 128)), [16, 128], "within the swizzle"),
        (_descriptor(box=(16, 4)), [16, 4], "box rows a multiple"),
    ],
)
def test_a_tensor_map_that_the_driver_refuses_is_seen(descriptor, box, rule):
    assert not tensor_map_faults(_descriptor(), [16, 64], swizzle=3)
    assert [fault for fault in tensor_map_faults(descriptor, box, swizzle=3) if rule in fault]


@pytest.mark.parametrize(("grid", "scratch"), [((1, 70_000, 1), 0), ((1, 1, 1), 128)])
def test_a_launch_that_the_driver_refuses_raises(grid, scratch):
    metadata = SimpleNamespace(name="kernel", global_scratch_size=scratch, tensordesc_meta=[])
    with pytest.raises(ValueError, match="would not launch"):
        check_launch(metadata, grid, [])


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
