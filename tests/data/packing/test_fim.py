import pytest

from moe_codegen.data.packing.fim import find_sentinels, rearrange
from moe_codegen.errors import TokenizerError
from moe_codegen.sentinels import SPELLINGS


def test_the_two_orders():
    sentinels = find_sentinels({token: -number for number, token in enumerate(SPELLINGS["santacoder"][:3], 1)})
    begin, end, fill = -1, -2, -3
    parts = ([1, 2], [3], [4, 5])
    assert rearrange(*parts, sentinels, suffix_first=False) == [begin, 1, 2, end, 4, 5, fill, 3]
    assert rearrange(*parts, sentinels, suffix_first=True) == [begin, end, 4, 5, fill, 1, 2, 3]


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=list(SPELLINGS))
def test_every_known_spelling_is_found(spelling):
    prefix, suffix, middle, _ = spelling
    assert find_sentinels(dict.fromkeys((prefix, suffix, middle), 1)).tokens == (prefix, middle, suffix)


def test_a_tokenizer_without_sentinels():
    with pytest.raises(TokenizerError, match=r"no fill-in-the-middle sentinels.*--fim-rate 0"):
        find_sentinels({"<fim-prefix>": 1, "a": 2})
