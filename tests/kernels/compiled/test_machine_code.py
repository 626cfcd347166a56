"""What the compiler makes of the shipped tiles, without a GPU: one bucket of each kind, or all of them.

KERNELS_VERIFY=all pytest tests/kernels/compiled (`make kernels-verify`) compiles every bucket for every architecture.
"""

import os
import re

import pytest
import torch
import triton

from benchmarks.ahead_of_time import compile_layer, compile_quantised_layer, gpu_without_device, main_loop
from benchmarks.shapes import SHAPES
from moe_codegen_kernels.gpu import decode, pointer
from moe_codegen_kernels.tiles import SHARED_MEMORY_LIMIT, buckets_of

GEMMS = {"up_kernel", "linear_kernel", "down_gradient_kernel", "ragged_k_kernel"}
TENSOR_CORE = {"sm_80": "HMMA", "sm_89": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "sm_120": "HMMA"}
SAMPLE = [("sm_90", "santacoder", 256), ("sm_90", "mixtral-8x7b", 256), ("sm_80", "santacoder", 192)]
EVERY = [
    (architecture, shape, bucket.rows_per_expert)
    for architecture in SHARED_MEMORY_LIMIT
    for bucket in buckets_of(gpu_without_device(architecture), 2)
    for shape in ("santacoder", "mixtral-8x7b")
]
VERIFY_ALL = os.environ.get("KERNELS_VERIFY") == "all"

# Instructions a warp may issue in one iteration of the main loop of sm_90's largest bucket, by Triton version: a
# ratchet. Lower a figure when the loop gets shorter; a longer loop needs a reason.
INSTRUCTIONS = {
    "3.6": {"up_kernel": 154, "linear_kernel": 110, "down_gradient_kernel": 98, "ragged_k_kernel": 96},
    "3.9": {"up_kernel": 154, "linear_kernel": 114, "down_gradient_kernel": 103, "ragged_k_kernel": 93},
}

# Bytes a thread an epilogue may spill, a ratchet too: `up` with Triton 3.6, `down_gradient` with 3.9.
EPILOGUE_SPILLS = {"up_kernel": 8, "down_gradient_kernel": 32}


def _gemms(architecture, shape, rows_per_expert, dtype=torch.bfloat16):
    shape = SHAPES[shape]
    tokens = max(80, rows_per_expert * shape.experts // shape.top_k)
    recorder = compile_layer(architecture, shape, tokens, dtype, trains=True)
    gemms = [kernel for kernel in recorder.kernels.values() if kernel.metadata.name in GEMMS]
    assert {kernel.metadata.name for kernel in gemms} == GEMMS
    return gemms


@pytest.mark.parametrize(("architecture", "shape", "rows_per_expert"), EVERY if VERIFY_ALL else SAMPLE)
def test_main_loops(architecture, shape, rows_per_expert):
    """Compiling is itself a check: a program that needs more shared memory than there is does not launch."""
    for kernel in _gemms(architecture, shape, rows_per_expert):
        name = kernel.metadata.name
        assert kernel.metadata.shared <= SHARED_MEMORY_LIMIT[architecture]
        if architecture.startswith("gfx"):
            assert "v_mfma" in kernel.asm["amdgcn"], name
            continue
        loop = main_loop(kernel)
        assert loop.tensor_core.startswith((TENSOR_CORE[architecture], "HMMA")), name
        assert loop.fma > 0, f"{name} has no main loop that can be followed"
        assert loop.local == 0, f"{name} spills in its main loop"
        assert loop.stack <= EPILOGUE_SPILLS.get(name, 0), f"{name} spills {loop.stack} bytes a thread"
        if architecture in ("sm_80", "sm_89", "sm_120"):
            assert loop.copies > 0, f"{name} does not load ahead"


@pytest.mark.parametrize("shape", ["santacoder", "mixtral-8x7b"])
def test_the_hopper_loops_are_bound_by_the_tensor_cores(shape):
    limits = INSTRUCTIONS[".".join(triton.__version__.split(".")[:2])]
    for kernel in _gemms("sm_90", shape, 256):
        loop = main_loop(kernel)
        assert loop.tensor_core.startswith("HGMMA")
        assert loop.copies >= 2
        assert loop.issue_fraction("sm_90") < 0.4, loop
        assert loop.instructions <= limits[loop.kernel], loop
        for body in re.findall(r"scf\.for.*?scf\.yield", kernel.asm["ttgir"], flags=re.DOTALL):
            if "warp_group_dot" in body:
                before_epilogue = body[: body.rindex("warp_group_dot")]
                assert "ttg.convert_layout" not in before_epilogue, loop.kernel


@pytest.mark.parametrize("architecture", ["sm_80", "gfx942"])
def test_row_addresses_are_64_bit(architecture):
    """A row number times a row's length passes 2^31: every product of the two must be 64-bit before it is added."""
    for kernel in _gemms(architecture, "santacoder", 192):
        ttir = kernel.asm["ttir"]
        if kernel.metadata.name == "ragged_k_kernel":
            widened = re.findall(r"arith\.ext[su]i .*i32.* to .*i64", ttir)
            assert len(widened) >= 3, kernel.metadata.name
        assert "arith.muli" in ttir
        assert re.search(r"arith\.muli [^:]*: (tensor<\d+x1x)?i64", ttir), kernel.metadata.name


@pytest.mark.parametrize(
    ("architecture", "rows_per_expert"),
    [(a, b.rows_per_expert) for a in SHARED_MEMORY_LIMIT for b in buckets_of(gpu_without_device(a), 4)]
    if VERIFY_ALL
    else [("sm_89", 64)],
)
@pytest.mark.parametrize("shape", ["santacoder", "mixtral-8x7b"] if VERIFY_ALL else ["mixtral-8x7b"])
def test_float32_fits_and_sums_each_step_apart(architecture, rows_per_expert, shape):
    for kernel in _gemms(architecture, shape, rows_per_expert, torch.float32):
        assert kernel.metadata.shared <= SHARED_MEMORY_LIMIT[architecture]
        (loop,) = (
            body for body in re.findall(r"scf\.for.*?scf\.yield", kernel.asm["ttgir"], re.DOTALL) if "tt.dot" in body
        )
        added = set(re.findall(r"arith\.addf (%\S+), (%\S+) ", loop))
        products = re.findall(r"(%\S+) = tt\.dot ", loop)
        assert products
        assert all(any(product in pair for pair in added) for product in products), "one chain over all of K"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"] if VERIFY_ALL else ["sm_90"])
def test_tf32_is_multiplied_by_the_tensor_cores(monkeypatch, architecture):
    monkeypatch.setattr(pointer, "precision_of", lambda dtype: "tf32")
    for kernel in _gemms(architecture, "santacoder", 64, torch.float32):
        loop = main_loop(kernel)
        assert "TF32" in loop.tensor_core
        assert loop.copies > 0
        assert loop.stack == 0
        assert loop.shared <= SHARED_MEMORY_LIMIT[architecture]


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [(a, dtype) for a in SHARED_MEMORY_LIMIT for dtype in (torch.bfloat16, torch.float32)]
    if VERIFY_ALL
    else [("sm_90", torch.bfloat16), ("sm_80", torch.float32), ("gfx942", torch.bfloat16)],
)
def test_decode_fits_and_loads_ahead(architecture, dtype, few):
    tokens = 1 if few else decode.MOST_TOKENS[dtype.itemsize]
    recorder = compile_layer(architecture, SHAPES["mixtral-8x7b"], tokens, dtype, trains=False)
    for kernel in recorder.kernels.values():
        assert kernel.metadata.shared <= SHARED_MEMORY_LIMIT[architecture]
        if not architecture.startswith("gfx") and kernel.metadata.name != "decode_combine_kernel":
            loop = main_loop(kernel)
            assert loop.stack == 0
            if loop.tensor_core.startswith("HMMA"):  # the loops that main_loop can follow
                assert loop.copies > 0


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [(a, dtype) for a in SHARED_MEMORY_LIMIT for dtype in (torch.bfloat16, torch.float32)]
    if VERIFY_ALL
    else [("sm_90", torch.bfloat16), ("sm_89", torch.bfloat16)],
)
def test_decode_of_quantised_weights_fits_and_loads_ahead(architecture, dtype, few, bits):
    tokens = 1 if few else decode.MOST_TOKENS[dtype.itemsize]
    recorder = compile_quantised_layer(architecture, SHAPES["mixtral-8x7b"], tokens, dtype, bits)
    for kernel in recorder.kernels.values():
        assert kernel.metadata.shared <= SHARED_MEMORY_LIMIT[architecture]
        if not architecture.startswith("gfx") and kernel.metadata.name != "decode_combine_kernel":
            loop = main_loop(kernel)
            assert loop.stack <= (0 if few else 16)  # of 64 tokens, where the processor multiplies in registers
            if loop.tensor_core.startswith("HMMA"):
                assert loop.copies > 0
                phases = dict(
                    re.findall(r"(#shared\d*) = #ttg.swizzled_shared<\{.*?maxPhase = (\d+)", kernel.asm["ttgir"])
                )
                weights = re.findall(r"local_alloc .*xi8, (#shared\d*),", kernel.asm["ttgir"])
                assert weights
                assert all(phases[buffer] != "1" for buffer in weights), "rows of weights lie in the same banks"
