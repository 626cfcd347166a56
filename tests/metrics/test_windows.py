"""Every token of every document counts exactly once, with the text before it that was promised."""

import pytest

from moe_codegen.errors import ConfigError, TokenizerError
from moe_codegen.metrics import Document, EncodedDocument, encode_documents, start_token
from moe_codegen.metrics.windows import window_batches, window_length
from tests import tiny

START = 0


def documents(*lengths):
    """Documents whose token ids tell document and place apart."""
    return [
        EncodedDocument(f"{number}", "repo", "python", [1000 * number + place + 1 for place in range(length)], length)
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("window", [2, 3, 7, 8, 64])
@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
def test_each_token_counts_once_in_a_window_of_its_own_document(window, batch_tokens):
    some = documents(1, 2, 7, 8, 9, 30)
    counted = []
    for batch in window_batches(some, START, window=window, batch_tokens=batch_tokens):
        assert batch.input_ids.shape[1] <= window
        assert batch.input_ids.numel() <= max(batch_tokens, batch.input_ids.shape[1])
        for row, (number, place) in enumerate(zip(batch.documents, batch.places, strict=True)):
            stream = [START, *some[number].ids]
            counts = batch.counted[row].nonzero().flatten().tolist()
            assert min(counts) >= 1, "the first token of a window is predicted from nothing"
            length = max(counts) + 1
            assert batch.input_ids[row, :length].tolist() == stream[place : place + length]
            assert set(batch.input_ids[row, length:].tolist()) <= {START}
            counted += batch.input_ids[row, counts].tolist()
    assert sorted(counted) == sorted(token for document in some for token in document.ids)


def test_a_token_has_half_a_window_or_its_whole_document_before_it():
    (document,) = documents(100)
    for batch in window_batches([document], START, window=10, batch_tokens=10):
        first = int(batch.counted[0].nonzero()[0])
        assert batch.places[0] == 0 or first >= 5


def test_a_sentinel_in_a_file_is_its_characters():
    tokenizer = tiny.tokenizer()
    (encoded,) = encode_documents(tokenizer, [Document("a", "r", "python", "x = '<fim-prefix>é'")])
    assert not {tokenizer.convert_tokens_to_ids("<fim-prefix>"), *tokenizer.all_special_ids} & set(encoded.ids)
    assert encoded.num_bytes == len("x = '<fim-prefix>é'") + 1


def test_a_document_starts_with_the_begin_or_else_the_end_of_text():
    tokenizer = tiny.tokenizer()
    assert start_token(tokenizer) == tokenizer.bos_token_id
    tokenizer.bos_token = None
    assert start_token(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(TokenizerError, match="eos_token"):
        start_token(tokenizer)


def test_a_window_longer_than_the_positions_is_refused():
    model = tiny.dense_model("gpt_bigcode")
    assert window_length(model) == 64
    assert window_length(model, 8) == 8
    for bad in (1, 65):
        with pytest.raises(ConfigError, match="64 positions"):
            window_length(model, bad)
