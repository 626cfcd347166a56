"""What kind of thing each token of source code is, by Pygments' lexers: keyword, name, literal and so on."""

from collections.abc import Sequence

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Literal, Name, Number, Operator, Punctuation, String, Text, Whitespace
from pygments.util import ClassNotFound

from moe_codegen.errors import ConfigError

KINDS = ("keyword", "name", "literal", "comment", "operator", "white space", "other")
# A kind of Pygments' belongs to the first of these that it lies below.
_KIND_OF = (
    (String.Doc, "comment"),
    (Operator.Word, "keyword"),
    (Keyword, "keyword"),
    (Name, "name"),
    (Number, "literal"),
    (String, "literal"),
    (Literal, "literal"),
    (Comment.PreprocFile, "literal"),
    (Comment.Preproc, "other"),
    (Comment, "comment"),
    (Operator, "operator"),
    (Punctuation, "operator"),
    (Whitespace, "white space"),
    (Text, "white space"),
)
_LEXERS = {"c-sharp": "csharp", "visual-basic": "vbnet", "batchfile": "batch", "shell": "bash", "assembly": "nasm"}


def kinds_of_characters(text: str, language: str) -> list[int]:
    """For each character its kind's place in `KINDS`; blanks are white space unless they lie in a comment or literal.

    Raises:
        ConfigError: a language that Pygments does not know.
    """
    try:
        lexer = get_lexer_by_name(_LEXERS.get(language, language))
    except ClassNotFound as error:
        raise ConfigError(f"Pygments has no lexer for {language!r}, so its tokens have no kinds") from error
    kinds = []
    # Unprocessed: otherwise the lexer would first rewrite line ends, and characters would move.
    for _, kind_of_pygments, part in lexer.get_tokens_unprocessed(text):
        kind = next((kind for above, kind in _KIND_OF if kind_of_pygments in above), "other")
        number = KINDS.index(kind)
        if kind in ("comment", "literal"):
            kinds += [number] * len(part)
        else:
            kinds += [KINDS.index("white space") if character.isspace() else number for character in part]
    return kinds


def kinds_of_tokens(kinds: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each token, which stands for the characters [start, end), the kind of its first that is not white space."""
    blank = KINDS.index("white space")
    return [next((kind for kind in kinds[start:end] if kind != blank), blank) for start, end in offsets]
