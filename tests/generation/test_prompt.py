"""Prompts: each family's sentinels are found, and text that looks like one stays text."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from moe_codegen.checkpoint import encode_text, load_tokenizer
from moe_codegen.errors import ConfigError
from moe_codegen.generation import encode_prompt, find_sentinels
from moe_codegen.sentinels import SPELLINGS
from tests import tiny
from tests.checkpoint.published import FAMILIES, published
from tests.checkpoint.tokenizers import tokenizer_with


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=list(SPELLINGS))
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_every_family_gets_its_own_sentinels_in_order(spelling, special, bos):
    tokenizer = tokenizer_with([token for token in spelling if token], special=special, bos=bos)
    prefix, suffix, middle = (tokenizer.convert_tokens_to_ids(token) for token in spelling[:3])
    ids = encode_prompt(tokenizer, "a", "b")
    start = [tokenizer.bos_token_id] if bos else []
    assert ids == [*start, prefix, *encode_text(tokenizer, "a"), suffix, *encode_text(tokenizer, "b"), middle]
    sentinels = find_sentinels(tokenizer)
    assert sentinels is not None
    assert sentinels.ids == {tokenizer.convert_tokens_to_ids(token) for token in spelling if token}


@pytest.mark.parametrize("family", ["codellama", "codellama-resaved"])
def test_code_llama_is_asked_as_it_was_trained(family):
    tokenizer = load_tokenizer(published(family), LlamaConfig())
    ids = encode_prompt(tokenizer, "first", "first\n")
    expected = ["<s>", "▁<PRE>", "▁first", "▁<SUF>", "first", "<0x0A>", "▁<MID>"]
    assert tokenizer.convert_ids_to_tokens(ids) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_prompt_are_the_text_before_and_after_the_gap(family):
    tokenizer = load_tokenizer(published(family), LlamaConfig())
    sentinels, x = find_sentinels(tokenizer), encode_text(tokenizer, "x")
    for before, after in product(("", "return ", "x\n    "), ("", "first\n", "  first", "):\n")):
        ids = encode_prompt(tokenizer, before, after)
        begin, middle, end = map(ids.index, (sentinels.prefix, sentinels.suffix, sentinels.middle))
        assert (ids[:begin], end) == ([tokenizer.bos_token_id] * (tokenizer.bos_token is not None), len(ids) - 1)
        assert tokenizer.decode(ids[begin + 1 : middle]) == before
        assert tokenizer.decode([*x, *ids[middle + 1 : end]]) == f"x{after}"


@pytest.mark.parametrize("special", [True, False])
@given(st.lists(st.sampled_from(["<|fim_prefix|>", "<|fim_suffix|>", "<end>", "x", "<", "|>", "é", "\n"])).map("".join))
def test_text_that_looks_like_a_control_token_stays_text(special, text):
    tokenizer = tokenizer_with(SPELLINGS["qwen-coder"][:3], special=special, bos=True)
    controls = set(tokenizer.get_added_vocab().values())
    assert sum(token in controls for token in encode_prompt(tokenizer, text)) == 1  # <start>
    assert sum(token in controls for token in encode_prompt(tokenizer, text, text)) == 4


def test_a_long_prompt_keeps_what_lies_nearest_to_the_answer():
    tokenizer = tokenizer_with(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], bos=True)
    tail = encode_text(tokenizer, "cdefghij")
    assert encode_prompt(tokenizer, "abcdefghij", max_tokens=9)[1:] == tail
    whole = encode_prompt(tokenizer, "abcdefghij", "0123456789")
    assert encode_prompt(tokenizer, "abcdefghij", "0123456789", max_tokens=len(whole)) == whole
    prefix, suffix = (tokenizer.convert_tokens_to_ids(f"<fim_{part}>") for part in ("prefix", "suffix"))
    for before, after, kept in (("abcdefghij", "0123456789", ("ghij", "0123")), ("ab", "0123456789", ("ab", "012345"))):
        ids = encode_prompt(tokenizer, before, after, max_tokens=12)
        assert len(ids) == 12
        assert ids[1] == prefix
        middle = ids.index(suffix)
        assert (tokenizer.decode(ids[2:middle]), tokenizer.decode(ids[middle + 1 : -1])) == kept


def test_a_tokenizer_without_sentinels_cannot_fill_a_gap():
    with pytest.raises(ConfigError, match="no fill-in-the-middle tokens"):
        encode_prompt(tokenizer_with([]), "a", "b")


def test_an_empty_prompt_begins_with_the_token_that_begins_texts():
    assert encode_prompt(tokenizer_with([], bos=True), "") == [tokenizer_with([], bos=True).bos_token_id]
    assert encode_prompt(tiny.tokenizer(), "") == [0]
    with pytest.raises(ConfigError, match="prompt is empty"):
        encode_prompt(tokenizer_with([]), "")
