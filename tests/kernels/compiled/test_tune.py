"""`tune` keeps the tile that was fastest, and the next call uses it."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from benchmarks.ahead_of_time import compiling_for, gpu_without_device
from moe_codegen.cli.tune import tune as tune_verb
from moe_codegen.errors import ConfigError
from moe_codegen_kernels import tiles, tune
from moe_codegen_kernels.tune import LayerSize


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_CODEGEN_CACHE", str(tmp_path))
    tiles.buckets_of.cache_clear()
    yield
    tiles.buckets_of.cache_clear()


@pytest.mark.parametrize("gated", [False, True])
def test_the_fastest_tile_is_kept_and_used(monkeypatch, gated):
    timed = []

    def pretend(run, tile, measure):
        timed.append(tile)
        return 1.0 if (tile.block_n, tile.block_k, tile.stages) == (64, 32, 4) and tile.flatten else 2.0

    monkeypatch.setattr(tune, "_time", pretend)
    gemms = {"up_gated" if gated else "up", "linear", "down_gradient", "ragged_k"}
    monkeypatch.setattr(tune, "_runs", lambda *arguments: dict.fromkeys(gemms))
    gpu = gpu_without_device("sm_90")
    size = LayerSize(64, 128, 4, 2, gated, torch.bfloat16)
    found = tune.tune(size, 1024, gpu, device="cpu")
    assert {f.gemm for f in found} == gemms
    assert all(f.after_ms == 1.0 and f.before_ms == 2.0 for f in found)
    bucket = tiles.choose(gpu, 2, 2048, 4, tma_fits=True)
    assert bucket.rows_per_expert == 512
    assert (bucket.linear.block_n, bucket.linear.block_k, bucket.linear.flatten) == (64, 32, True)
    assert len(set(timed)) > 40


@pytest.mark.parametrize(("architecture", "gated"), [("sm_90", True), ("sm_80", False)])  # by TMA, by pointer
def test_every_gemm_is_run_as_it_will_be(architecture, gated):
    """One candidate of each GEMM through the real launchers."""
    with compiling_for(architecture) as recorder:
        gpu = gpu_without_device(architecture)
        before = tiles.choose(gpu, 2, 2048, 4, tma_fits=True)
        runs = tune._runs(
            LayerSize(64, 128, 4, 2, gated, torch.bfloat16), 1024, before.path, before.block_m, gpu, "cpu"
        )
        for gemm, run in runs.items():
            assert (
                tune._time(lambda tile, run=run: run(tile), getattr(before, gemm), lambda call: call() is not None)
                == 1.0
            )
    names = [launch.name for launch in recorder.launches]
    assert names == ["schedule_kernel", "up_kernel", "linear_kernel", "down_gradient_kernel", "ragged_k_kernel"]


def test_a_tile_that_does_not_fit_is_passed_over():
    def too_large(tile):
        raise OutOfResources(300_000, 232_448, "shared memory")

    assert tune._time(too_large, None, lambda call: call()) == float("inf")


def test_without_a_gpu_the_verb_says_what_it_needs():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="sees none"):
        tune_verb()
