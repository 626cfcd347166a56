"""Well-formed programs parse, broken ones do not, in every language there is a grammar for."""

import pytest

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.syntax import GRAMMARS, can_parse, parses

WHOLE = {
    "python": "def f(x):\n    return [x, 'é']\n",
    "java": "class A { int f(int x) { return x + 1; } }",
    "javascript": "const f = (x) => `${x}`;\n",
    "cpp": "template <typename T> T f(T x) { return x; }\n",
    "typescript": "function f(x: number): string { return `${x}`; }\n",
}


@pytest.mark.parametrize("language", GRAMMARS)
def test_a_whole_program_parses_and_a_torn_one_does_not(language):
    assert parses(WHOLE[language], language)
    assert not parses(WHOLE[language].replace(")", "", 1), language)


def test_multipl_es_short_names_are_known():
    assert parses(WHOLE["python"], "py")
    assert parses(WHOLE["javascript"], "js")
    assert not parses(WHOLE["typescript"], "js")


def test_a_language_without_a_grammar_is_named():
    assert not can_parse("fortran")
    with pytest.raises(ConfigError, match="fortran"):
        parses("end", "fortran")
