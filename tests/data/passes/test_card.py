import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from moe_codegen.data.deduplication.dedup import dedup
from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.passes.card import write_card
from moe_codegen.data.reading.sources import open_source
from tests.data.inputs import row, write


@pytest.fixture
def cleaned(tmp_path):
    rows = [row(seed, language=("python", "ruby")[seed % 2]) for seed in range(30)]
    rows[0]["licenses"], rows[1]["licenses"] = ["ISC", "0BSD"], ["GPL-3.0"]
    clean(open_source(write(tmp_path / "in", rows), unit_bytes=4000), tmp_path / "out")
    return tmp_path / "out"


def test_a_verbs_output_is_a_dataset(cleaned, tmp_path):
    assert len(list(cleaned.glob("*.parquet"))) > 1
    loaded = load_dataset(str(cleaned), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["path"]) == sorted(f"src/file{seed}.py" for seed in range(30) if seed != 1)


def test_the_card_says_what_the_manifests_say(cleaned, tmp_path):
    dedup(open_source(cleaned), tmp_path / "unique")
    card = DatasetCard.load(tmp_path / "unique" / "README.md")
    assert card.data.license == ["isc", "mit", "other"]  # of clean, which counted them; the Hub has no name for 0BSD
    assert card.data.size_categories == ["n<1K"]
    assert card.data.tags == ["code", "python", "ruby"]
    for line in (
        "## clean of `in`",
        "29 of 30 files kept (96.7%).",
        "| license not permissive | 1 |",
        "## dedup of `out`",
    ):
        assert line in card.text


@pytest.mark.parametrize(
    ("rows", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_the_category_of_a_size(tmp_path, rows, category):
    manifest = {"verb": "clean", "source": "in", "version": "0", "rows": rows, "history": []}
    write_card(tmp_path, {"default": {"train": "*.parquet"}}, [manifest])
    card = DatasetCard.load(tmp_path / "README.md").data
    assert (card.size_categories, card.license) == ([category], ["unknown"])
