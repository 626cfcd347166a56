"""Whether a text is well-formed, by tree-sitter's grammars: neither names nor types are looked at."""

from functools import cache
from importlib import import_module

from tree_sitter import Language, Parser

from moe_codegen.errors import ConfigError
from moe_codegen.languages import canonical_language

# Our name -> the grammar's package and the function in it that gives the grammar.
GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}


def can_parse(language: str) -> bool:
    """Whether there is a grammar for `language`."""
    return canonical_language(language) in GRAMMARS


def parses(text: str, language: str) -> bool:
    """Whether `text` parses without an error and without anything missing.

    Raises:
        ConfigError: no grammar for `language`.
    """
    return not _parser(canonical_language(language)).parse(text.encode()).root_node.has_error


@cache
def _parser(language: str) -> Parser:
    if language not in GRAMMARS:
        raise ConfigError(f"there is no grammar for {language!r}; there are {', '.join(GRAMMARS)}")
    package, function = GRAMMARS[language]
    return Parser(Language(getattr(import_module(package), function)()))
