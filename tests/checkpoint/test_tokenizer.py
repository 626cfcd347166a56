"""Text as tokens: none of it becomes a control token, whatever it spells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_codegen.checkpoint import encode_text
from moe_codegen.sentinels import SPELLINGS
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
