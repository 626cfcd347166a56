import json

import numpy as np
import pytest

from moe_codegen.data.deduplication.dedup import DedupSettings, dedup, find_duplicates
from moe_codegen.data.deduplication.signatures import ShingleFile, ShingleStore, Signatures
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ConfigError
from tests.data.deduplication.test_shingles import grams
from tests.data.inputs import code, edited, read, row, tree, write


def run(tmp_path, rows, settings=None, name="out", num_proc=1, row_group=10):
    source = open_source(write(tmp_path / "in", rows, row_group=row_group), unit_bytes=4000)
    manifest = dedup(source, tmp_path / name, settings, num_proc=num_proc)
    kept = [one["path"] for one in read(tmp_path / name)]
    logged = [
        json.loads(line) for path in (tmp_path / name).glob("dropped/*") for line in path.read_text().splitlines()
    ]
    return manifest, kept, {one["path"]: one for one in logged}


def similarity(one, two):
    return len(grams(one) & grams(two)) / len(grams(one) | grams(two))


def test_of_equal_files_the_one_with_most_stars_is_kept(tmp_path):
    rows = [row(0, stars=1), row(1, content=code(0), stars=9), row(2, content=code(0), stars=3), row(3)]
    manifest, kept, dropped = run(tmp_path, rows)
    assert kept == ["src/file1.py", "src/file3.py"]
    assert {one["reason"] for one in dropped.values()} == {"exact_duplicate"}
    assert {one["duplicate_of"] for one in dropped.values()} == {"data.parquet#0 row 1"}
    assert manifest["cluster_sizes"] == {"1": 1, "3": 1}


def test_planted_near_duplicates_are_found_and_distant_files_kept(tmp_path):
    originals = [row(seed, stars=5, content=code(seed, 60)) for seed in range(60)]
    copies = [row(100 + seed, stars=0, content=edited(code(seed, 60), 0.005 * seed, seed)) for seed in range(60)]
    _, kept, dropped = run(tmp_path, originals + copies)
    assert {one["path"] for one in originals} <= set(kept)
    near = {
        one["path"]: similarity(one["content"], base["content"]) for one, base in zip(copies, originals, strict=True)
    }
    assert min(near.values()) < 0.6  # some are no duplicates at all
    assert all(path in dropped for path, value in near.items() if value >= 0.85)
    assert all(near[path] >= 0.7 for path in dropped)
    for path, value in near.items():
        if path in dropped and value < 1:
            assert dropped[path]["similarity"] == pytest.approx(value, abs=1e-6)


def test_no_two_kept_files_of_a_chain_are_near_and_none_is_dropped_for_a_distant_one(tmp_path):
    chain = [code(0, 80)]
    for step in range(8):
        chain.append(edited(chain[-1], 0.06, step + 1))
    rows = [row(seed, content=text, stars=20 - seed) for seed, text in enumerate(chain)]
    _, kept, dropped = run(tmp_path, rows)
    texts = {one["path"]: one["content"] for one in rows}
    assert dropped
    assert len(kept) > 1
    for path in dropped:
        assert max(similarity(texts[path], texts[other]) for other in kept) >= 0.7
    for one in kept:
        assert all(similarity(texts[one], texts[other]) < 0.7 for other in kept if other != one)


def test_files_of_few_words_are_compared_as_a_whole_only(tmp_path):
    rows = [row(0, content="a b c d e f g\n"), row(1, content="a b c d e f g \n"), row(2, content="a b c d e f g\n")]
    _, kept, dropped = run(tmp_path, rows)
    assert len(kept) == 2
    assert [one["reason"] for one in dropped.values()] == ["exact_duplicate"]


def test_exact_only(tmp_path):
    rows = [row(0, content=code(0, 60)), row(1, content=code(0, 60) + "x\n"), row(2, content=code(0, 60), stars=9)]
    _, kept, _ = run(tmp_path, rows, DedupSettings(near=False))
    assert kept == ["src/file1.py", "src/file2.py"]


def test_workers_and_the_cut_into_units_change_nothing(tmp_path):
    rows = [row(seed, content=edited(code(seed % 15, 50), 0.03, seed)) for seed in range(60)]
    run(tmp_path, rows, name="one", num_proc=1)
    run(tmp_path, rows, name="two", num_proc=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    _, other_cut, _ = run(tmp_path, rows, name="three", row_group=7)
    assert other_cut == [one["path"] for one in read(tmp_path / "one")]


def test_every_band_is_looked_at_and_every_file_of_a_bucket_against_its_best(tmp_path):
    """For each band two equal sets that share it alone; then a bucket whose files are near to the best one only."""
    settings = DedupSettings(bands=4, rows=10)
    sets = [np.arange(100, dtype=np.uint32) + 1000 * band for band in range(4) for _ in range(2)]
    best = np.arange(9000, 9100, dtype=np.uint32)
    for own in range(4):  # shares 85 of 115 with the best one, 85 - 15 of 130 with each other
        sets.append(
            np.union1d(
                np.delete(best, range(15 * own, 15 * own + 15)), np.arange(15, dtype=np.uint32) + 100 * own + 5000
            )
        )
    sets.insert(8, best)
    files = len(sets)
    keys = np.arange(files * 4, dtype=np.uint64).reshape(files, 4)
    for band in range(4):
        keys[2 * band : 2 * band + 2, band] = 10**6
    keys[8:, 2] = 10**7
    found = duplicates(tmp_path, sets, keys, settings)
    assert found == [(1, 0), (3, 2), (5, 4), (7, 6), (9, 8), (10, 8), (11, 8), (12, 8)]


def test_distant_files_of_one_bucket_are_each_compared_once(tmp_path, monkeypatch):
    """They make no cluster, in which all would be compared with all: a bucket by chance costs what its size is."""
    compared = []
    real = ShingleStore.jaccard
    monkeypatch.setattr(ShingleStore, "jaccard", lambda *pair: compared.append(pair[1:]) or real(*pair))
    sets = [np.arange(100, dtype=np.uint32) + 1000 * file for file in range(20)]
    assert duplicates(tmp_path, sets, np.zeros((20, 1), np.uint64), DedupSettings(bands=1, rows=10)) == []
    assert compared == [(0, file) for file in range(1, 20)]


def duplicates(folder, sets, keys, settings):
    """(file, the better one it is dropped for) of files of these shingles, a hundred each, and band keys."""
    files = len(sets)
    rows = np.arange(files)
    content = np.stack([rows, rows], axis=1).astype(np.uint64)
    Signatures(rows, content, files - rows, np.full(files, 500), keys, np.full(files, 100)).save(folder, 0)
    with ShingleFile(folder, 0) as store:
        store.append(np.concatenate([np.sort(some) for some in sets]))
    find_duplicates(folder, folder / "verdicts", ["unit"], settings)
    with np.load(folder / "verdicts" / "00000.npz") as verdict:
        return list(zip(verdict["rows"].tolist(), verdict["of_row"].tolist(), strict=True))


def test_an_empty_source(tmp_path):
    manifest, kept, _ = run(tmp_path, [row(0, content=None)])
    assert kept == []
    assert manifest["tally"] == {"null_content": {"python": [1, 0]}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bands": 26, "rows": 10}, "26 bands of 10 rows need 260 permutations, and there are 256"),
        ({"bands": 26}, "bands=26, rows=None: give both or neither"),
        ({"bands": -2, "rows": -3}, "bands=-2 should be at least 1"),
        ({"permutations": 0}, "permutations=0 should be at least 1"),
    ],
)
def test_impossible_bands(wrong, message):
    with pytest.raises(ConfigError, match=message):
        DedupSettings(**wrong)


def test_bands_suit_the_similarity(tmp_path):
    """The defaults at 0.7; of pairs at 0.5 to 0.6, most are found if that is asked for."""
    assert DedupSettings().banding == DedupSettings(similarity=0.9).banding == (25, 10)
    pairs = [(code(seed, 60), edited(code(seed, 60), 0.15, seed)) for seed in range(60)]
    alike = [pair for pair in pairs if 0.5 <= similarity(*pair) < 0.6]
    rows = [row(2 * seed + one, content=pair[one]) for seed, pair in enumerate(alike) for one in range(2)]
    manifest, _, _ = run(tmp_path, rows, DedupSettings(similarity=0.5))
    assert manifest["tally"]["near_duplicate"]["python"][0] > 0.6 * len(alike) > 6
