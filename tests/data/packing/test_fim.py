import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen.data.packing.fim import Part, find_sentinels, rearrange, restore
from moe_codegen.errors import TokenizerError
from moe_codegen.sentinels import SPELLINGS

SENTINELS = find_sentinels({token: number for number, token in enumerate(SPELLINGS["santacoder"][:3])})


@given(st.text(max_size=60), st.integers(0, 2**32), st.floats(0, 1))
@settings(deadline=None)
def test_the_parts_are_the_document(text, seed, spm_rate):
    parts = rearrange(text, SENTINELS, 1.0, spm_rate, seed)
    assert restore(parts, SENTINELS) == text
    assert sum(part.is_sentinel for part in parts) == 3
    assert parts == rearrange(text, SENTINELS, 1.0, spm_rate, seed)


def test_the_two_orders():
    psm = rearrange("abcdef", SENTINELS, 1.0, 0.0, 3)
    spm = rearrange("abcdef", SENTINELS, 1.0, 1.0, 3)
    prefix, middle, suffix = psm[1], psm[5], psm[3]
    begin, fill, end = (Part(token, True) for token in SENTINELS.tokens)
    assert psm == [begin, prefix, end, suffix, fill, middle]
    assert spm == [begin, end, suffix, fill, prefix, middle]


def test_rates_and_cuts_are_as_asked():
    """4,000 documents: shares within four standard errors, cuts uniform over characters."""
    parts = [rearrange(f"{number:04d}" * 25, SENTINELS, 0.5, 0.5, 0) for number in range(4000)]
    changed = [some for some in parts if len(some) > 1]
    assert abs(len(changed) / 4000 - 0.5) < 0.032
    spm = [some for some in changed if some[1].is_sentinel]
    assert abs(len(spm) / len(changed) - 0.5) < 0.045
    middles = [len(some[5].text) for some in changed]
    assert sum(middles) / len(middles) == pytest.approx(100 / 3, abs=2)  # mean distance of two uniform cuts


def test_the_seed_changes_the_cuts():
    texts = [f"{number} " * 20 for number in range(50)]
    made = [[rearrange(text, SENTINELS, 1.0, 0.5, seed) for text in texts] for seed in (0, 1)]
    assert made[0] != made[1]


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=list(SPELLINGS))
def test_every_known_spelling_is_found(spelling):
    prefix, suffix, middle, _ = spelling
    assert find_sentinels(dict.fromkeys((prefix, suffix, middle), 1)).tokens == (prefix, middle, suffix)


def test_a_tokenizer_without_sentinels():
    with pytest.raises(TokenizerError, match=r"no fill-in-the-middle sentinels.*--fim-rate 0"):
        find_sentinels({"<fim-prefix>": 1, "a": 2})
