"""Fill-in-the-middle (Bavarian et al., arXiv 2207.14255): a text is cut at two characters and its parts reordered.

Both cuts are at characters, not at tokens, so that a model learns to go on from the middle of a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moe_codegen.errors import TokenizerError
from moe_codegen.sentinels import SPELLINGS, find_spelling


@dataclass(frozen=True)
class Sentinels:
    """The tokens that mark the parts, as text; `ids` are their numbers."""

    prefix: str
    middle: str
    suffix: str
    ids: Mapping[str, int]

    @property
    def tokens(self) -> tuple[str, str, str]:
        """Prefix, middle, suffix."""
        return self.prefix, self.middle, self.suffix


def find_sentinels(vocabulary: Mapping[str, int]) -> Sentinels:
    """The sentinels of a tokenizer by its vocabulary, `tokenizer.get_vocab()`.

    Raises `TokenizerError` where there is no known set of three.
    """
    spelling = find_spelling(vocabulary)
    if spelling is None:
        known = "; ".join(" ".join(each[:3]) for each in SPELLINGS.values())
        raise TokenizerError(f"the tokenizer has no fill-in-the-middle sentinels; known are {known}. Use --fim-rate 0")
    tokens = (spelling.prefix, spelling.middle, spelling.suffix)
    return Sentinels(*tokens, {token: vocabulary[token] for token in tokens})


def rearrange(
    prefix: list[int], middle: list[int], suffix: list[int], sentinels: Sentinels, *, suffix_first: bool
) -> list[int]:
    """The tokens of a text's three parts, each encoded by itself, with the sentinels that mark them.

    PSM: prefix sentinel, P, suffix sentinel, S, middle sentinel, M. `suffix_first`, SPM: prefix sentinel, suffix
    sentinel, S, middle sentinel, P, M. P and M stay apart, as they are when a model is asked to go on from P.
    """
    begin, fill, end = (sentinels.ids[token] for token in sentinels.tokens)
    if suffix_first:
        return [begin, end, *suffix, fill, *prefix, *middle]
    return [begin, *prefix, end, *suffix, fill, *middle]
