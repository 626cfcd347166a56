"""Prompts: each family's sentinels are found, and text that looks like one stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from moe_codegen.checkpoint import encode_text
from moe_codegen.errors import ConfigError
from moe_codegen.generation import encode_prompt, find_sentinels
from moe_codegen.sentinels import SPELLINGS
from tests import tiny


def tokenizer_with(added, *, special=True, bos=False, eos="<end>"):
    """A byte-level tokenizer without merges, with control tokens as a family would have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<start>", special=True), AddedToken(eos, special=True)])
    bpe.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    if bos:
        start = ("<start>", bpe.token_to_id("<start>"))
        bpe.post_processor = processors.TemplateProcessing("<start> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<start>" if bos else None, eos_token=eos)


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


@pytest.mark.parametrize("special", [True, False])
@given(st.lists(st.sampled_from(["<|fim_prefix|>", "<|fim_suffix|>", "<end>", "x", "<", "|>", "é", "\n"])).map("".join))
def test_text_that_looks_like_a_control_token_stays_text(special, text):
    tokenizer = tokenizer_with(SPELLINGS["qwen-coder"][:3], special=special, bos=True)
    ids = encode_text(tokenizer, text)
    assert not set(ids) & set(tokenizer.get_added_vocab().values())
    assert tokenizer.decode(ids) == text
    controls = set(tokenizer.get_added_vocab().values())
    assert sum(token in controls for token in encode_prompt(tokenizer, text)) == 1  # <start>
    assert sum(token in controls for token in encode_prompt(tokenizer, text, text)) == 4


def test_runs_of_blanks_that_were_added_as_tokens_stay_those_tokens():
    tokenizer = tokenizer_with(["<fim_prefix>", "    ", "<fim_suffix>", "\t\t"], special=False)
    expected = [tokenizer.convert_tokens_to_ids(token) for token in ("x", "    ", "<", "\t\t")]
    assert encode_text(tokenizer, "x    <fim_prefix>\t\t")[:3] == expected[:3]
    assert encode_text(tokenizer, "x    <fim_prefix>\t\t")[-1] == expected[3]


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
