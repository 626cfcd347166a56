import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen.data.deduplication import shingles as shingles_module
from moe_codegen.data.deduplication.minhash import bands
from moe_codegen.data.deduplication.shingles import jaccard, shingles
from tests.data.inputs import code, edited

WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
TEXT = st.lists(
    st.sampled_from(["a", "b", " ", "\n", "(", "long_identifier_of_many_bytes", "é", "7"]), max_size=40
).map("".join)


def grams(text):
    words = WORD.findall(text.encode())
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def made(texts):
    return shingles(pa.array([text.encode() for text in texts], pa.binary()))


@given(st.lists(TEXT, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_shingles_are_the_sets_of_five_grams(texts):
    result = made(texts)
    sets = [grams(text) for text in texts]
    assert result.words.tolist() == [len(WORD.findall(text.encode())) for text in texts]
    assert [len(result.of(file)) for file in range(len(texts))] == [len(one) for one in sets]
    for one in range(len(texts)):
        exact = len(sets[0] & sets[one]) / max(len(sets[0] | sets[one]), 1)
        assert jaccard(result.of(0), result.of(one)) == pytest.approx(exact)


def test_indentation_and_punctuation_have_no_part():
    text = code(1)
    result = made([text, text.replace("    ", "\t\t"), text.replace("(", " ( ")])
    assert (result.of(0) == result.of(1)).all()
    assert (result.of(0) == result.of(2)).all()


def test_blocks_change_nothing(monkeypatch):
    texts = [code(seed) for seed in range(20)] + ["", "x"]
    whole = made(texts)
    monkeypatch.setattr(shingles_module, "_BLOCK_BYTES", 1000)
    parts = made(texts)
    assert (whole.hashes_G == parts.hashes_G).all()
    assert (whole.offsets == parts.offsets).all()
    assert (whole.words == parts.words).all()


def test_a_band_is_shared_as_often_as_the_formula_says():
    """1 - (1 - J^R)^B, within four standard errors over 300 pairs."""
    shared, expected = [], []
    for seed in range(300):
        pair = made([code(seed, 60), edited(code(seed, 60), 0.15, seed)])
        similarity = jaccard(pair.of(0), pair.of(1))
        keys = bands(pair, 256, 25, 10)
        shared.append(bool((keys[0] == keys[1]).any()))
        expected.append(1 - (1 - similarity**10) ** 25)
    error = np.sqrt(np.sum(np.array(expected) * (1 - np.array(expected)))) / 300
    assert 0.1 < np.mean(expected) < 0.9
    assert abs(np.mean(shared) - np.mean(expected)) < 4 * error


def test_too_many_bands_are_refused():
    with pytest.raises(ValueError, match="need 270 permutations, not 256"):
        bands(made(["a"]), 256, 27, 10)
