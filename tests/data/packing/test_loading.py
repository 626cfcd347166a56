import pytest
import torch

from moe_codegen.data.packing.loading import IGNORED, collate, load_packed
from moe_codegen.data.packing.pack import pack
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.packing.tokenizer import TokenizerSettings, make_tokenizer
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import SourceError
from tests.data.inputs import row, write
from tests.tiny import FAMILIES, VOCABULARY, dense_model

DOCUMENTS = [
    torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 14, 5)
]


def packed_rows():
    ids = torch.cat([*DOCUMENTS, torch.zeros(4, dtype=torch.long)]).tolist()
    other = torch.cat([DOCUMENTS[1], DOCUMENTS[0], torch.zeros(9, dtype=torch.long)]).tolist()
    return [
        {"input_ids": ids, "lengths": [9, 14, 5], "languages": [1, 0, 1]},
        {"input_ids": other, "lengths": [14, 9], "languages": [0, 1]},
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_in_a_packed_batch_has_the_logits_it_has_alone(family, attention):
    model = dense_model(family)
    model.set_attn_implementation(attention)
    batch = collate(packed_rows())
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for place, start, document in ((0, 0, 0), (0, 9, 1), (0, 23, 2), (1, 0, 1), (1, 14, 0)):
            alone = model(input_ids=DOCUMENTS[document][None], use_cache=False).logits[0]
            torch.testing.assert_close(logits[place, start : start + len(alone)], alone, rtol=1e-4, atol=1e-4)
    assert labels.shape == logits.shape[:2]


def test_labels_leave_out_first_tokens_and_padding():
    batch = collate(packed_rows())
    ignored = (batch["labels"] == IGNORED).nonzero().tolist()
    assert ignored == [[0, 0], [0, 9], [0, 23], *([0, place] for place in range(28, 32)), [1, 0], [1, 14]] + [
        [1, place] for place in range(23, 32)
    ]
    kept = batch["labels"] != IGNORED
    assert (batch["labels"][kept] == batch["input_ids"][kept]).all()
    assert batch["position_ids"][0].tolist() == [*range(9), *range(14), *range(5), *range(4)]


def test_language_ids_come_when_asked_for_and_padding_has_none():
    assert "language_ids" not in collate(packed_rows())
    language_ids = collate(packed_rows(), with_languages=True)["language_ids"]
    assert language_ids[0].tolist() == [1] * 9 + [0] * 14 + [1] * 5 + [IGNORED] * 4
    assert language_ids[1].tolist() == [0] * 14 + [1] * 9 + [IGNORED] * 9


def test_a_folder_that_is_not_packed_is_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no packed sequences"):
        load_packed(tmp_path)


def test_a_packed_dataset_resumes_where_it_was(tmp_path):
    source = open_source(write(tmp_path / "in", [row(seed) for seed in range(60)]))
    make_tokenizer(source, tmp_path / "tokenizer", TokenizerSettings(vocabulary=400))
    out = tmp_path / "out [1]"  # no pattern
    pack(source, out, PackSettings(str(tmp_path / "tokenizer"), 128))
    whole = [one["input_ids"] for one in load_packed(out)]
    dataset = load_packed(out)
    rows = iter(dataset)
    first = [next(rows)["input_ids"] for _ in range(7)]
    resumed = load_packed(out)
    resumed.load_state_dict(dataset.state_dict())
    assert first + [one["input_ids"] for one in resumed] == whole
    assert len(whole) > 20
    assert collate(list(dataset.take(2)))["input_ids"].shape == (2, 128)
