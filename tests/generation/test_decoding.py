"""Text appears piece by piece as it would appear whole, and stop strings never appear."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from moe_codegen.checkpoint import encode_text, load_tokenizer
from moe_codegen.generation import encode_prompt
from moe_codegen.generation.decoding import IncrementalDecoder, find_stop, settled_length
from tests.checkpoint.published import FAMILIES, published
from tests.checkpoint.tokenizers import tokenizer_with

TOKENIZER = tokenizer_with([])


@given(st.text(max_size=20), st.text(max_size=5))
def test_pieces_join_to_the_text_and_are_never_half_a_character(text, before):
    decoder = IncrementalDecoder(TOKENIZER, TOKENIZER(before).input_ids)
    pieces = [decoder.step(token) for token in TOKENIZER(text).input_ids]
    assert "".join(pieces) + decoder.flush() == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["first + 1", " first", "    return first\n", "\n", "한국어 🚀🚀🚀🚀", "漢字漢字漢字"])
def test_what_goes_on_from_a_prompt_loses_and_gains_nothing(family, text):
    tokenizer = load_tokenizer(published(family), LlamaConfig())
    for before in ("return", "def add(first):\n    ", "# 🚀🚀\n"):
        for after in (None, "", "first\n"):
            decoder = IncrementalDecoder(tokenizer, encode_prompt(tokenizer, before, after))
            pieces = [decoder.step(token) for token in encode_text(tokenizer, text, continuing=True)]
            assert "".join(pieces) + decoder.flush() == text


def test_after_a_token_without_text_the_next_one_keeps_its_blank():
    tokenizer = load_tokenizer(published("codellama"), LlamaConfig())
    decoder = IncrementalDecoder(tokenizer, encode_text(tokenizer, "return"))
    assert [decoder.step(tokenizer.convert_tokens_to_ids(token)) for token in ("</s>", "▁first")] == ["", " first"]


def test_bytes_that_are_no_text_do_not_hold_everything_back():
    decoder = IncrementalDecoder(TOKENIZER, [])
    byte = TOKENIZER("é").input_ids[0]  # the first byte of a character whose second never comes
    pieces = [decoder.step(byte) for _ in range(8)]
    assert any(pieces)


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_what_is_settled_can_no_longer_become_a_stop_string(text, stop):
    length = settled_length(text, stop)
    held = text[length:]
    assert not held or any(each.startswith(held) for each in stop)
    if find_stop(text, stop) is None:
        for each in stop:
            for more in range(1, len(each) + 1):
                place = find_stop(text + each[-more:], [each])
                assert place is None or place >= length


def test_the_first_stop_string_counts():
    assert find_stop("one two three", ["three", "two"]) == 4
    assert find_stop("one", ["two"]) is None
