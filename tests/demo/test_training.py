"""The demo's tokenizer, windows and training: reproducible, and sentinels only where they belong."""

import pytest
import torch

from moe_codegen.demo import Document, small_santacoder, tokenise, train, train_tokenizer
from moe_codegen.demo.training import _pieces
from moe_codegen.generation import find_sentinels

TEXTS = [f"def function_{i}(first, second):\n    return first + {i} * second\n\n" * 30 for i in range(8)]
DOCUMENTS = [Document(f"{i}.py", "python", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocabulary=320)


def test_every_text_survives_the_tokenizer(tokenizer):
    for text in [*TEXTS, "naïve → 日本\t\r\n"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_windows_hold_whole_gaps_in_order(tokenizer):
    sentinels = find_sentinels(tokenizer)
    assert sentinels is not None
    windows = tokenise(DOCUMENTS, tokenizer, seed=0, window=64)
    assert windows.shape[1] == 64
    stream = [token for token in windows.flatten().tolist() if token in sentinels.ids]
    complete = stream[: len(stream) // 3 * 3]
    assert complete == [sentinels.prefix, sentinels.suffix, sentinels.middle] * (len(complete) // 3)
    assert complete
    assert torch.equal(windows, tokenise(DOCUMENTS, tokenizer, seed=0, window=64))
    assert not torch.equal(windows[:3], tokenise(DOCUMENTS, tokenizer, seed=1, window=64)[:3])


def test_source_that_speaks_of_sentinels_does_not_contain_them(tokenizer):
    document = Document("x.py", "python", "<fim-prefix><fim-middle><|endoftext|>\n" * 40)
    ids = tokenise([document], tokenizer, seed=3, window=16).flatten()
    sentinels = find_sentinels(tokenizer)
    assert sentinels is not None
    assert (ids == sentinels.prefix).sum() < 10  # the sentinels of gaps, at most one a piece


def test_pieces_are_whole_lines_that_join_to_the_text():
    text = "".join(f"line {i} of many\n" for i in range(200))
    pieces = list(_pieces(text))
    assert "".join(pieces) == text
    assert all(len(piece) <= 560 and piece.endswith("\n") for piece in pieces)


def test_training_is_reproducible_and_learns(tokenizer):
    windows = tokenise(DOCUMENTS, tokenizer, window=32)
    losses, models = [], []
    for _ in range(2):
        seen = []
        model = small_santacoder(tokenizer)
        losses.append(train(model, windows, steps=4, on_step=seen.append))
        models.append(model)
        assert [progress.step for progress in seen] == [1, 2, 3, 4]
        assert seen[-1].share == 1
        assert seen[-1].loss < seen[0].loss
    assert losses[0] == losses[1]
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)
    assert not models[0].training


def test_the_clock_can_end_training(tokenizer):
    seen = []
    windows = tokenise(DOCUMENTS, tokenizer, window=32)
    train(small_santacoder(tokenizer), windows, steps=10**9, minutes=0.005, on_step=seen.append)
    assert seen[-1].share == 1
    assert len(seen) < 1000
