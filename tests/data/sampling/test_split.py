import json

import numpy as np
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.sampling import held_out
from moe_codegen.data.sampling.repositories import are_in, held_out_repositories
from moe_codegen.data.sampling.split import SplitSettings, split
from moe_codegen.errors import ConfigError
from tests.data.deduplication.test_dedup import similarity
from tests.data.inputs import code, edited, read, row, tree, write


def rows_with_twins():
    """Every fourth file has edited copies, 1 to 30%, in other repositories; some files are tiny and equal."""
    rows = [row(seed, repo=f"repo{seed}", content=code(seed, 40)) for seed in range(80)]
    rows += [
        row(100 + seed, repo=f"copy{seed}", content=edited(code(seed % 80, 40), (1 + seed % 30) / 100, seed))
        for seed in range(0, 160, 4)
    ]
    return rows + [row(300 + seed, repo=f"tiny{seed}", content="x = 1\n") for seed in range(12)]


@pytest.mark.parametrize("block_shingles", [1 << 24, 300])
def test_no_validation_file_has_a_twin_in_training(tmp_path, monkeypatch, block_shingles):
    monkeypatch.setattr(held_out, "_BLOCK_SHINGLES", block_shingles)
    source = open_source(write(tmp_path / "in", rows_with_twins()), unit_bytes=5000)
    manifest = split(source, tmp_path / "out", SplitSettings(validation=0.3))
    train, validation = read(tmp_path / "out" / "train"), read(tmp_path / "out" / "validation")
    assert not {one["repo"] for one in train} & {one["repo"] for one in validation}
    for held in validation:
        for one in train:
            near = similarity(held["content"], one["content"]) if len(held["content"]) > 20 else 0
            assert near < 0.7
            assert held["content"] != one["content"]
    lines = [line for path in (tmp_path / "out" / "dropped").iterdir() for line in path.read_text().splitlines()]
    assert len(train) + len(validation) + len(lines) == len(rows_with_twins())
    assert manifest["tally"]["near_validation"]["python"][0] == len(lines)
    texts = {one["path"]: one["content"] for one in rows_with_twins()}
    for dropped in map(json.loads, lines):
        best = max(similarity(texts[dropped["path"]], h["content"]) for h in validation if len(h["content"]) > 20)
        if len(texts[dropped["path"]]) > 20:
            assert dropped["similarity"] == pytest.approx(best, abs=1e-6)


def test_workers_change_nothing_and_the_seed_does(tmp_path):
    source = open_source(write(tmp_path / "in", rows_with_twins()), unit_bytes=5000)
    split(source, tmp_path / "one", SplitSettings(validation=0.3))
    split(source, tmp_path / "two", SplitSettings(validation=0.3), num_proc=2)
    split(source, tmp_path / "three", SplitSettings(validation=0.3, seed=1))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert read(tmp_path / "one" / "validation") != read(tmp_path / "three" / "validation")


def test_a_file_without_repository_is_its_own(tmp_path):
    rows = [row(seed, repo=None) for seed in range(60)]
    manifest = split(open_source(write(tmp_path / "in", rows)), tmp_path / "out", SplitSettings(validation=0.3))
    assert manifest["split_rows"]["validation"] == 18


def test_a_share_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"validation=1\.5 should lie between 0 and 1 \(both excluded\)"):
        split(open_source(write(tmp_path / "in", [row(0)])), tmp_path / "out", SplitSettings(validation=1.5))


def test_a_source_without_text(tmp_path):
    manifest = split(open_source(write(tmp_path / "in", [row(0, content=None)])), tmp_path / "out")
    assert manifest["split_rows"] == {"train": 0, "validation": 0}


def test_a_language_without_validation_is_said_and_training_alone_is_a_dataset(tmp_path):
    rows = [row(seed, repo="only", language="java") for seed in range(9)]
    with pytest.warns(UserWarning, match="no file of java went to validation: training cannot spare the repository"):
        split(open_source(write(tmp_path / "in", rows)), tmp_path / "out", SplitSettings(validation=0.9))
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {side: len(some) for side, some in loaded.items()} == {"train": 9}


PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=60, unique=True)


@given(PAIRS, st.floats(0.01, 0.99))
def test_every_language_stays_in_training_and_goes_to_validation_if_one_can_be_spared(pairs, share):
    repos, languages = np.array(pairs, np.uint64).T
    held = held_out_repositories(repos, languages, share).tolist()
    of_language = {language: {repo for repo, spoken in pairs if spoken == language} for _, language in pairs}
    for mine in of_language.values():
        assert mine - set(held)
        spare = [repo for repo in mine if all(own - set(held) != {repo} for own in of_language.values())]
        assert mine & set(held) or not spare


def test_of_languages_that_are_alike_the_share_is_held_out_to_the_repository():
    repos = np.random.default_rng(0).integers(0, 2**64, 300, np.uint64)
    held = held_out_repositories(repos, np.arange(300) % 3, 0.1)
    assert held.tolist() == sorted(repos.tolist())[:30]
    assert are_in(repos, held).sum() == 30
