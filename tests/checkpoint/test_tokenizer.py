"""Text as tokens: none of it becomes a control token, whatever it spells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import LlamaConfig

from moe_codegen.checkpoint import encode_text, load_tokenizer
from moe_codegen.sentinels import SPELLINGS
from tests.checkpoint.published import FAMILIES, published
from tests.checkpoint.tokenizers import tokenizer_with

LOOKALIKES = st.lists(st.sampled_from(["<|fim_prefix|>", "<|fim_suffix|>", "<end>", "x", "<", "|>", "é", "\n"]))


@pytest.mark.parametrize("special", [True, False])
@given(LOOKALIKES.map("".join))
def test_what_looks_like_a_control_token_stays_text(special, text):
    tokenizer = tokenizer_with(SPELLINGS["qwen-coder"][:3], special=special, bos=True)
    ids = encode_text(tokenizer, text)
    assert not set(ids) & set(tokenizer.get_added_vocab().values())
    assert tokenizer.decode(ids) == text


def test_runs_of_blanks_that_were_added_as_tokens_stay_those_tokens():
    tokenizer = tokenizer_with(["<fim_prefix>", "    ", "<fim_suffix>", "\t\t"], special=False)
    expected = [tokenizer.convert_tokens_to_ids(token) for token in ("x", "    ", "<", "\t\t")]
    assert encode_text(tokenizer, "x    <fim_prefix>\t\t")[:3] == expected[:3]
    assert encode_text(tokenizer, "x    <fim_prefix>\t\t")[-1] == expected[3]


@pytest.mark.parametrize("continuing", [True, False])
def test_text_is_neither_cut_nor_padded_where_a_tokenizers_file_asks_for_it(continuing):
    tokenizer = tokenizer_with(["<fim_prefix>"])
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    assert tokenizer.decode(encode_text(tokenizer, "a <fim_prefix>", continuing=continuing)) == "a <fim_prefix>"


CODE = ["return first", "  return", "\n    x = 1\n", ") ", " ", "", "é = '漢\U0001f600'", "<FILL_ME>"]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "codellama-resaved"])
def test_a_published_tokenizer_is_read_as_it_stands(family):
    tokenizer = load_tokenizer(published(family), LlamaConfig())
    assert [tokenizer.decode(encode_text(tokenizer, text)) for text in CODE] == CODE


@pytest.mark.parametrize("family", FAMILIES)
def test_text_that_goes_on_from_another_gets_no_blank(family):
    tokenizer = load_tokenizer(published(family), LlamaConfig())
    before = encode_text(tokenizer, "x")
    for text in [*CODE, *SPELLINGS["starcoder"][:3], *SPELLINGS["qwen-coder"][:3]]:
        assert tokenizer.decode([*before, *encode_text(tokenizer, text, continuing=True)]) == f"x{text}"


def test_nor_does_it_with_bytes_as_letters():
    tokenizer = tokenizer_with([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer.decode(encode_text(tokenizer, "x")) == " x"
    assert tokenizer.decode(encode_text(tokenizer, "x", continuing=True)) == "x"


@pytest.mark.parametrize("family", ["codellama", "codellama-resaved"])
def test_text_that_goes_on_is_encoded_as_code_llamas_authors_do(family):
    """They put before it a letter that joins with no other, and drop that letter's tokens."""
    tokenizer = load_tokenizer(published(family), LlamaConfig())
    dropped = len(encode_text(tokenizer, "☺"))
    for text in CODE:
        assert encode_text(tokenizer, text, continuing=True) == encode_text(tokenizer, f"☺{text}")[dropped:]
