"""The loss of a document is what a pass over it alone gives, whatever else is in the batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_codegen.errors import ConfigError
from moe_codegen.metrics import (
    Document,
    document_losses,
    encode_documents,
    loss_differences,
    losses_by_language,
    start_token,
)
from tests import tiny
from tests.modeling.mixture import mixture

TEXTS = ["def f(x):\n    return x\n", "class A { int b; }", "first + second; " * 12, "e"]
TOKENIZER = tiny.tokenizer()
START = start_token(TOKENIZER)
DOCUMENTS = encode_documents(
    TOKENIZER,
    [Document(f"{i}", f"repo{i % 3}", "python" if i < 1 else "java", text) for i, text in enumerate(TEXTS)],
)


def nats_alone(model, document, window):
    """The sum over tokens of -log p, one pass for each token, over the text its window would show."""
    stream = [START, *document.ids]
    total, start = 0.0, 0
    for place in range(1, len(stream)):
        if place == start + window:
            start = place - window // 2
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([stream[start:place]])).logits[0, -1]
        total -= logits.double().log_softmax(-1)[stream[place]].item()
    return total


@pytest.mark.parametrize("model", [tiny.dense_model("gpt_bigcode"), mixture("llama")], ids=["dense", "mixture"])
@pytest.mark.parametrize("batch_tokens", [1, 128])
def test_the_loss_is_that_of_each_document_alone(model, batch_tokens):
    losses = document_losses(model, DOCUMENTS, START, window=16, batch_tokens=batch_tokens)
    expected = [nats_alone(model, document, 16) for document in DOCUMENTS]
    np.testing.assert_allclose(losses.nats, expected, rtol=1e-5)
    assert losses.tokens.tolist() == [len(document.ids) for document in DOCUMENTS]
    assert losses.bytes.tolist() == [len(text.encode()) for text in TEXTS]


def test_training_mode_and_its_dropout_are_left_as_they_were():
    model = tiny.dense_model("gpt_bigcode", resid_pdrop=0.5).train()
    first, second = (document_losses(model, DOCUMENTS, START) for _ in range(2))
    assert model.training
    np.testing.assert_array_equal(first.nats, second.nats)


def test_a_model_that_knows_nothing_loses_log_v_a_token():
    model = tiny.dense_model("gpt_bigcode")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    losses = document_losses(model, DOCUMENTS, START)
    by_language = losses_by_language(losses)
    assert set(by_language) == {"python", "java", "all"}
    for interval in by_language.values():
        assert interval.value == pytest.approx(math.log(tiny.VOCABULARY))
    bits = losses_by_language(losses, "byte")["all"].value
    tokens, nbytes = losses.tokens.sum(), losses.bytes.sum()
    assert bits == pytest.approx(math.log2(tiny.VOCABULARY) * tokens / nbytes)


def test_a_difference_is_known_better_than_the_losses():
    generator = np.random.default_rng(0)
    base = document_losses(tiny.dense_model("gpt_bigcode"), DOCUMENTS, START)
    count = 200
    hard = generator.normal(500, 100, count)
    many = replace(
        base,
        names=tuple(map(str, range(count))),
        repositories=tuple(str(i // 2) for i in range(count)),
        languages=("python",) * count,
        nats=hard,
        tokens=np.full(count, 100),
        bytes=np.full(count, 300),
    )
    better = replace(many, nats=hard - 5 + generator.normal(0, 2, count))
    difference = loss_differences(better, many)["python"]
    assert difference.value == pytest.approx(-0.05, abs=0.005)
    assert difference.high < 0
    assert difference.high - difference.low < 0.1 * np.ptp(
        [losses_by_language(many)["all"].low, losses_by_language(many)["all"].high]
    )
    same = loss_differences(many, many)["all"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_other_documents_or_another_tokenizer_are_refused():
    losses = document_losses(tiny.dense_model("gpt_bigcode"), DOCUMENTS, START)
    with pytest.raises(ConfigError, match="different documents"):
        loss_differences(losses, replace(losses, names=losses.names[::-1]))
    coarser = replace(losses, tokens=losses.tokens + 1)
    with pytest.raises(ConfigError, match="bits per byte"):
        loss_differences(losses, coarser)
    assert loss_differences(losses, coarser, "byte")["all"].value == 0


def test_nothing_to_measure_is_refused():
    model = tiny.dense_model("gpt_bigcode")
    with pytest.raises(ConfigError, match="no documents"):
        document_losses(model, [], START)
    with pytest.raises(ConfigError, match="empty has no tokens"):
        document_losses(model, [replace(DOCUMENTS[0], name="empty", ids=[])], START)
