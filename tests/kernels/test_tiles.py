"""Tile tables: every one loads, the right bucket is chosen, and what `tune` found comes first."""

import json

import pytest
import torch

from moe_codegen_kernels import tiles
from moe_codegen_kernels.tiles import SHARED_MEMORY_LIMIT, Bucket, Gpu, choose, nearest_architecture


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("MOE_CODEGEN_CACHE", str(tmp_path))
    tiles.buckets_of.cache_clear()
    yield
    tiles.buckets_of.cache_clear()


@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("architecture", SHARED_MEMORY_LIMIT)
def test_every_table_serves_every_load(architecture, element_bytes):
    gpu = Gpu(architecture, 100)
    for rows in (0, 1, 100, 10_000, 1_000_000):
        assert choose(gpu, element_bytes, rows, 8, tma_fits=False).path == "pointer"
        choose(gpu, element_bytes, rows, 8, tma_fits=True)


def test_more_rows_get_larger_tiles():
    chosen = [choose(Gpu("sm_90", 132), 2, rows * 8, 8, tma_fits=True) for rows in (1, 48, 255, 256, 4096)]
    assert [bucket.block_m for bucket in chosen] == [16, 64, 64, 128, 128]
    assert [bucket.path for bucket in chosen] == ["pointer"] * 3 + ["tma"] * 2


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [(80, "sm_80"), (86, "sm_80"), (89, "sm_89"), (90, "sm_90"), (103, "sm_100"), (121, "sm_120")],
)
def test_an_unlisted_gpu_takes_the_nearest_lower_table(capability, architecture):
    assert nearest_architecture(capability) == architecture


def test_an_old_gpu_is_told_what_to_do():
    with pytest.raises(RuntimeError, match=r'capability 7\.5 is below 8\.0.*"eager"'):
        nearest_architecture(75)


def test_float64_is_told_what_to_use():
    with pytest.raises(ValueError, match="64-bit elements on a GPU; use bfloat16"):
        choose(Gpu("sm_90", 132), 8, 100, 8, tma_fits=False)


def test_gemms_of_a_bucket_share_a_schedule():
    record = choose(Gpu("sm_90", 132), 2, 0, 8, tma_fits=False).to_dict()
    assert Bucket.from_dict(record) == choose(Gpu("sm_90", 132), 2, 0, 8, tma_fits=False)
    record["linear"] = {**record["linear"], "block_m": 32}
    with pytest.raises(ValueError, match="share a schedule"):
        Bucket.from_dict(record)


def test_the_users_cache_comes_first(tmp_path):
    gpu = Gpu("sm_90", 132, "Some GPU")
    record = choose(gpu, 2, 0, 8, tma_fits=False).to_dict() | {"rows_per_expert": 300}
    path = tiles.cache_path(gpu)
    assert path.is_relative_to(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"16-bit": [record]}))
    tiles.buckets_of.cache_clear()
    assert choose(gpu, 2, 300 * 8, 8, tma_fits=True).block_m == 16
    assert choose(gpu, 2, 299 * 8, 8, tma_fits=True).block_m == 128


@pytest.mark.parametrize(
    ("dtype", "setting", "precision"),
    [
        (torch.float32, "ieee", "ieee"),
        (torch.float32, "tf32", "tf32"),
        (torch.bfloat16, "tf32", "ieee"),
    ],
)
def test_tf32_only_when_asked(monkeypatch, dtype, setting, precision):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = setting
    try:
        assert tiles.precision_of(dtype) == precision
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
