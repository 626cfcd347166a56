"""Experts are counted by language and kind as a pass over each file alone counts them."""

import numpy as np
import torch

from moe_codegen.checkpoint import encode_with_offsets
from moe_codegen.evaluation.held_out.expert_use import encode_kinds, expert_use, expert_use_record
from moe_codegen.evaluation.held_out.token_kinds import KINDS, kinds_of_characters, kinds_of_tokens
from tests import tiny
from tests.evaluation.held_out.test_line_completion import DOCUMENTS
from tests.modeling.mixture import mixture

TOKENIZER = tiny.tokenizer()


def test_counts_are_those_of_each_file_alone():
    model = mixture("gpt_bigcode", moe_layers=[1])
    short = [document for document in DOCUMENTS if len(encode_with_offsets(TOKENIZER, document.text).ids) < 60]
    assert len(short) >= 3
    counts = expert_use(model, encode_kinds(TOKENIZER, short), 0, batch_tokens=100)
    expected = np.zeros_like(counts.chosen_GLE)
    for document in short:
        tokens = encode_with_offsets(TOKENIZER, document.text)
        kinds = kinds_of_tokens(kinds_of_characters(document.text, document.language), tokens.offsets)
        with torch.no_grad():
            logits = model(torch.tensor([[0, *tokens.ids]]), output_router_logits=True).router_logits
        for kind, experts in zip(kinds, logits[0].topk(2).indices[1:].tolist(), strict=True):
            for expert in experts:
                expected[counts.groups.index(f"{document.language}/{KINDS[kind]}"), 0, expert] += 1
    np.testing.assert_array_equal(counts.chosen_GLE, expected)


def test_the_record_sums_over_kinds_and_over_languages():
    model = mixture("llama")
    record = expert_use_record(expert_use(model, encode_kinds(TOKENIZER, DOCUMENTS), 0, window=16))
    chosen = np.array(record["chosen"])
    assert chosen.shape == (len(record["languages"]), len(KINDS), 3, 4)
    tokens = sum(len(encode_with_offsets(TOKENIZER, document.text).ids) for document in DOCUMENTS)
    assert (chosen.sum(axis=(0, 1, 3)) == 2 * tokens).all()
    by_language = chosen.sum(axis=1)
    np.testing.assert_allclose(
        record["by_language"]["share_by_group"], by_language / by_language.sum(axis=-1, keepdims=True)
    )
    assert sum(record["by_kind"]["tokens"]) == sum(record["by_language"]["tokens"]) == tokens
    assert set(record["by_kind"]["groups"]) <= set(KINDS)
