"""The kernels as they are shipped, compiled and executed: numbers no worse than eager's, no stray or racing access.

KERNELS_VERIFY=all runs every bucket of tiles of every architecture whose instructions the emulator knows.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from benchmarks.ahead_of_time import gpu_without_device
from moe_codegen_kernels import quantise_weight, tune
from moe_codegen_kernels.gpu import layer
from moe_codegen_kernels.quantised_weights import Quantised
from moe_codegen_kernels.tiles import buckets_of
from moe_codegen_kernels.trials import LayerSize, Trial
from tests.kernels.emulator.launch import emulating
from tests.kernels.gpu_path import expert_ffn_on
from tests.kernels.problems import check_against_oracle, eager_expert_ffn, make_problem, oracle, relative_error

VERIFY_ALL = os.environ.get("KERNELS_VERIFY") == "all"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_120")
SAMPLE = [
    ("sm_90", 256, True, "bfloat16"),
    ("sm_80", 0, False, "float16"),
    ("sm_120", 0, True, "float32"),
]
EVERY = [
    (architecture, bucket.rows_per_expert, gated, dtype)
    for architecture in ARCHITECTURES
    for dtype in ("bfloat16", "float32")
    for bucket in buckets_of(gpu_without_device(architecture), getattr(torch, dtype).itemsize)
    for gated in (False, True)
]


@pytest.mark.parametrize(("architecture", "rows_per_expert", "gated", "dtype"), EVERY if VERIFY_ALL else SAMPLE)
def test_layer(architecture, rows_per_expert, gated, dtype):
    """Forward and backward. Tiles end inside every extent: rows, columns, and the last step of each sum."""
    tokens = max(5, rows_per_expert + 1)
    problem = make_problem(tokens, 72, 264, experts=2, gated=gated, activation="silu" if gated else "gelu_tanh")
    gpu, dtype = replace(gpu_without_device(architecture), processors=3), getattr(torch, dtype)
    with emulating(architecture) as launches:
        check_against_oracle(functools.partial(expert_ffn_on, gpu), problem, dtype)
    path = next(b.path for b in buckets_of(gpu, dtype.itemsize) if b.rows_per_expert <= tokens)
    assert [launch.name for launch in launches].count("gather_kernel") == (2 if path == "tma" else 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES if VERIFY_ALL else ("sm_90",))
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(("tokens", "experts"), [(7, 3), (64, 12), (3, 100)] if VERIFY_ALL else [(7, 3), (3, 12)])
def test_decode_reads_each_touched_expert_once(architecture, bits, tokens, experts):
    """Fewer and more experts than rows; of each that a token chose, every byte of its weights, and of no other."""
    problem = make_problem(tokens, 96, 160, experts, load="sentinels", gated=True).to(torch.bfloat16)
    stored = problem.experts()
    if bits < 16:
        group = 32 if bits == 4 else None
        up, down = (Quantised(*quantise_weight(matrices, bits, group)) for matrices in (problem.up, problem.down))
        problem = replace(problem, up=up.to(torch.bfloat16), down=down.to(torch.bfloat16))
        stored = stored._replace(up=up, down=down)
    gpu = gpu_without_device(architecture)
    with emulating(architecture) as launches:
        if bits < 16:
            out_TD = layer.quantised_expert_ffn(*problem.routed(), stored, gpu)
        else:
            out_TD, *_ = layer.expert_ffn(*problem.routed(), stored, False, False, gpu)
    kind = {"activation": "gelu_tanh", "gated": True}
    truth_TD = oracle.expert_ffn(*problem.to(torch.float64, torch.float64).arguments(), **kind)
    eager_TD = eager_expert_ffn(*problem.arguments(), **kind)
    assert relative_error(out_TD, truth_TD) <= 1.5 * relative_error(eager_TD, truth_TD)

    touched = problem.expert_ids_TK[problem.expert_ids_TK < experts].unique().numel()
    for launch, matrices in zip(launches, (stored.up, stored.down), strict=False):
        weights = matrices.stored if bits < 16 else matrices
        assert launch.loaded[weights.data_ptr()] == touched * weights[0].nbytes


@pytest.mark.parametrize(("architecture", "gated"), [("sm_90", True), ("sm_80", False)])  # by TMA, by pointer
def test_what_tune_times_computes_what_it_compares_with(architecture, gated, monkeypatch, tmp_path):
    """The shipped tiles, run by `tune` itself: every result agrees with torch's, or none would be kept."""
    monkeypatch.setenv("MOE_CODEGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "compile_one", lambda *_: None)
    monkeypatch.setattr(Trial, "candidates", lambda self, gemm, shipped: [])
    monkeypatch.setattr(tune, "regrouped", lambda tile: [])
    size = LayerSize(72, 264, 2, 2, gated, torch.bfloat16)
    gpu = replace(gpu_without_device(architecture), processors=3)
    with emulating(architecture), ThreadPoolExecutor(1) as pool:
        found = tune.tune(size, 257, gpu, pool, device="cpu", measure=lambda run: 1.0)
    buckets_of.cache_clear()
    assert {each.gemm for each in found} == set(size.gemms)
