"""Fill-in-the-middle (Bavarian et al., arXiv 2207.14255): a document is cut at two characters and its parts reordered.

Both cuts are at characters, not at tokens, so that a model learns to go on from the middle of a word. The random
numbers of a document come from its own content: neither order nor workers nor a resumed run change them.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xxhash

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


@dataclass(frozen=True)
class Part:
    """A stretch of a document's text, or a sentinel."""

    text: str
    is_sentinel: bool = False


def rearrange(text: str, sentinels: Sentinels, rate: float, spm_rate: float, seed: int) -> list[Part]:
    """`text` as the parts to be encoded one by one; with probability 1 - `rate` the one part that it is.

    PSM: prefix sentinel, P, suffix sentinel, S, middle sentinel, M. With probability `spm_rate` SPM: prefix sentinel,
    suffix sentinel, S, middle sentinel, P, M. P and M stay apart, as they are when a model is asked to go on from P.
    """
    generator = random.Random(xxhash.xxh64_intdigest(text.encode(), seed=seed))
    if generator.random() >= rate:
        return [Part(text)]
    one, two = sorted(generator.randrange(len(text) + 1) for _ in range(2))
    prefix, middle, suffix = Part(text[:one]), Part(text[one:two]), Part(text[two:])
    begin, fill, end = (Part(token, True) for token in sentinels.tokens)
    if generator.random() < spm_rate:
        return [begin, end, suffix, fill, prefix, middle]
    return [begin, prefix, end, suffix, fill, middle]


def restore(parts: Iterable[Part], sentinels: Sentinels) -> str:
    """The document that `rearrange` cut, from its parts."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0].text
    if parts[1] == Part(sentinels.suffix, True):
        return parts[4].text + parts[5].text + parts[2].text
    return parts[1].text + parts[5].text + parts[3].text
