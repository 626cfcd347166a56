"""Each character has the kind a reader would give it, and tokens the kind of what they begin with."""

import pytest

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.held_out.token_kinds import KINDS, kinds_of_characters, kinds_of_tokens

LETTERS = dict(zip("KNLCO_?", KINDS, strict=True))
CASES = {
    "python": ("\ndef f(x):  # so\r\n    return 'a b' + 1.5\n", "_KKK_NONOO__CCCCC_____KKKKKK_LLLLL_O_LLL_"),
    "java": ("\tint b = 0x1; /* c */", "_KKK_N_O_LLLO_CCCCCCC"),
    "javascript": ("let é = `a${b}`;", "KKK_N_O_LLLLNLLO"),
    "cpp": ('#include <a>\nint b = "c";', "????????_LLL_KKK_N_O_LLLO"),
}


@pytest.mark.parametrize("language", CASES)
def test_characters_have_the_kinds_a_reader_gives_them(language):
    text, expected = CASES[language]
    kinds = [KINDS[kind] for kind in kinds_of_characters(text, language)]
    assert len(kinds) == len(text)
    assert kinds == [LETTERS[letter] for letter in expected]


def test_a_token_is_what_its_first_character_that_is_no_blank_is():
    kinds = kinds_of_characters("if  x", "python")
    offsets = [(0, 2), (2, 4), (3, 5), (5, 5)]
    assert [KINDS[kind] for kind in kinds_of_tokens(kinds, offsets)] == [
        "keyword",
        "white space",
        "name",
        "white space",
    ]


def test_an_unknown_language_is_named():
    with pytest.raises(ConfigError, match="klingon"):
        kinds_of_characters("qapla", "klingon")
