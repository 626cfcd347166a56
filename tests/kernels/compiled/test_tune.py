"""`tune` keeps the tile that was fastest, and the next call uses it; other processes compile what it times."""

import json
import weakref
from concurrent.futures import Executor, Future

import pytest
import torch
import triton

from benchmarks.ahead_of_time import compiling_for, gpu_without_device
from moe_codegen.cli.tune import tune as tune_verb
from moe_codegen.errors import ConfigError
from moe_codegen_kernels import tiles, tune
from moe_codegen_kernels.gpu.no_device import current_gpu
from moe_codegen_kernels.tiles import Tile
from moe_codegen_kernels.trials import LayerSize, Trial, TrialGemms, compile_one, compile_pool


class _InThisProcess(Executor):
    """Does at once what it is given."""

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_CODEGEN_CACHE", str(tmp_path))
    tiles.buckets_of.cache_clear()
    yield
    tiles.buckets_of.cache_clear()


def _trial(architecture, size, tokens=1024):
    """As `tune` makes it, of the bucket that is there."""
    gpu = gpu_without_device(architecture)
    before = tiles.choose(gpu, 2, tokens * size.top_k, size.experts, tma_fits=True)
    return Trial(size, tokens, before.path, before.block_m, gpu.processors, *current_gpu()), before


class _Ones:
    """In place of a trial's GEMMs: each gives a one, as it must, but with the tiles in `wrong`."""

    wrong = staticmethod(lambda tile: False)

    def __init__(self, trial, device):
        self.names = trial.size.gemms

    def run(self, gemm, tile):
        return (torch.tensor(2.0 if self.wrong(tile) else 1.0),)

    def expected(self):
        return {gemm: (torch.tensor(1.0),) for gemm in self.names}


@pytest.fixture
def compiled(monkeypatch):
    """The (gemm, tile) that were asked for; nothing is compiled or run."""
    seen = []
    monkeypatch.setattr(tune, "compile_one", lambda trial, gemm, tile: seen.append((gemm, tile)))
    monkeypatch.setattr(tune, "TrialGemms", _Ones)
    with compiling_for("sm_90"):
        yield seen


def _is_best(tile):
    return (tile.block_n, tile.block_k, tile.stages, tile.programs) == (64, 32, 4, 2)


def _pretend(call):
    return 1.0 if _is_best(call.args[-1]) else 2.0


@pytest.mark.parametrize("gated", [False, True])
def test_the_fastest_tile_is_kept_and_used(compiled, gated):
    gpu = gpu_without_device("sm_90")
    size = LayerSize(64, 128, 4, 2, gated, torch.bfloat16)
    found = tune.tune(size, 1024, gpu, _InThisProcess(), device="cpu", measure=_pretend)
    assert {f.gemm for f in found} == {"up_gated" if gated else "up", "linear", "down_gradient", "ragged_k"}
    assert all(f.after_ms == 1.0 and f.before_ms == 2.0 for f in found)
    bucket = tiles.choose(gpu, 2, 2048, 4, tma_fits=True)
    assert bucket.rows_per_expert == 512
    assert (bucket.linear.block_n, bucket.linear.block_k, bucket.linear.programs) == (64, 32, 2)
    assert 100 < len(compiled) < 300
    assert len(set(compiled)) > 80


def test_a_finished_search_is_not_repeated(compiled):
    gpu = gpu_without_device("sm_90")
    size = LayerSize(64, 128, 4, 2, False, torch.bfloat16)
    assert tune.tune(size, 1024, gpu, _InThisProcess(), device="cpu", measure=_pretend)
    before = len(compiled)
    assert tune.tune(size, 1024, gpu, _InThisProcess(), device="cpu", measure=_pretend) == []
    assert len(compiled) == before
    assert tune.tune(size, 512, gpu, _InThisProcess(), device="cpu", measure=_pretend)


def test_a_search_cut_short_keeps_the_best_so_far_and_goes_on_next_time(compiled):
    gpu = gpu_without_device("sm_90")
    size = LayerSize(64, 128, 4, 2, False, torch.bfloat16)
    shipped = tiles.choose(gpu, 2, 2048, 4, tma_fits=True)
    found = tune.tune(size, 1024, gpu, _InThisProcess(), seconds=0, device="cpu", measure=_pretend)
    assert [f.after for f in found] == [shipped.up, shipped.linear, shipped.down_gradient, shipped.ragged_k]
    found = tune.tune(size, 1024, gpu, _InThisProcess(), device="cpu", measure=_pretend)
    assert all(f.after_ms == 1.0 for f in found)
    table = json.loads(tiles.cache_path(gpu).read_text())
    assert [record["rows_per_expert"] for record in table["16-bit"]] == [512]


def test_a_fast_tile_with_wrong_results_is_not_kept(compiled, monkeypatch):
    monkeypatch.setattr(_Ones, "wrong", staticmethod(_is_best))
    size = LayerSize(64, 128, 4, 2, False, torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="differs from torch's result"):
        found = tune.tune(size, 1024, gpu_without_device("sm_90"), _InThisProcess(), device="cpu", measure=_pretend)
    assert all(f.after_ms == 2.0 and not _is_best(f.after) for f in found)


def test_one_search_at_a_time_holds_its_operands(compiled, monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Counted(_Ones):
        def __init__(self, trial, device):
            super().__init__(trial, device)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(tune, "TrialGemms", Counted)
    size = LayerSize(64, 128, 4, 2, False, torch.bfloat16)
    tune.tune(size, 1024, gpu_without_device("sm_90"), _InThisProcess(), device="cpu", measure=_pretend)
    assert most == [1, 1]


@pytest.mark.parametrize(("architecture", "gated"), [("sm_90", True), ("sm_80", False)])  # by TMA, by pointer
def test_every_gemm_is_run_as_it_will_be(architecture, gated):
    """One candidate of each GEMM through the real launchers."""
    with compiling_for(architecture) as recorder:
        trial, before = _trial(architecture, LayerSize(64, 128, 4, 2, gated, torch.bfloat16))
        gemms = TrialGemms(trial, None)
        for gemm in trial.size.gemms:
            assert trial.candidates(gemm, getattr(before, gemm))[0] == getattr(before, gemm)
            gemms.run(gemm, getattr(before, gemm))
    names = [launch.name for launch in recorder.launches if launch.name != "gather_kernel"]
    assert names == [
        "schedule_kernel", "up_kernel", "linear_kernel", "down_gradient_kernel", "sum_partials_kernel",
        "routing_weight_gradient_kernel", "ragged_k_kernel",
    ]  # fmt: skip


def test_what_another_process_compiled_is_found_here(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    hits = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda *, src, cache_hit, **_: hits.append((src.name, cache_hit))
    )
    tile = Tile(64, 64, 32, 4, 3)
    with compiling_for("sm_90"):
        trial, _ = _trial("sm_90", LayerSize(64, 128, 4, 2, False, torch.bfloat16), tokens=100)
        with compile_pool() as pool:
            assert pool.submit(compile_one, trial, "linear", tile).result() is None
        TrialGemms(trial, None).run("linear", tile)
    assert ("linear_kernel", True) in hits


def test_a_tile_that_does_not_fit_is_passed_over():
    with compiling_for("sm_80"):
        trial, _ = _trial("sm_80", LayerSize(64, 128, 4, 2, False, torch.bfloat16))
        assert "OutOfResources" in compile_one(trial, "linear", Tile(128, 128, 64, 8, 6))
        assert not any(tile.block_n == 256 for tile in trial.candidates("up_gated", Tile(128, 256, 64, 8, 3))[1:])


def test_without_a_gpu_the_verb_says_what_it_needs():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="sees none"):
        tune_verb()
