"""A document as pieces that fit a sequence; each of them may be rearranged for fill-in-the-middle, by itself.

A document is cut first and rearranged then, piece by piece ("context-level" in Bavarian et al., arXiv 2207.14255): in
the other order a sequence could hold a middle without its prefix, or sentinels without what they mark. BigCode
did the same to the part of each document that lies in a sequence, with a draw for each (its Megatron-LM,
`megatron/data/gpt_dataset.py`). The random numbers of a document come from its own content: neither order nor workers
nor a resumed run change them.
"""

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from moe_codegen.data.packing.fim import Sentinels, find_sentinels, rearrange
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.packing.tokenizer import Encoder

_SENTINELS = 3  # in a piece that is rearranged


@dataclass(frozen=True)
class Cutter:
    """Documents to pieces of tokens; without `sentinels` none is rearranged."""

    encoder: Encoder
    sentinels: Sentinels | None
    settings: PackSettings

    @classmethod
    def of(cls, encoder: Encoder, settings: PackSettings) -> "Cutter":
        """Raises `TokenizerError` where sentinels are asked for and the tokenizer has none."""
        return cls(encoder, find_sentinels(encoder.vocabulary) if settings.fim_rate else None, settings)

    def pieces(self, text: str, ids: list[int]) -> list[list[int]]:
        """The tokens `ids` of `text` in pieces of `sequence_length` at most; the last one ends in end-of-text."""
        generator = random.Random(xxhash.xxh64_intdigest(text.encode(), seed=self.settings.seed))
        length = self.settings.sequence_length
        ended = [*ids, self.encoder.end]
        if self.sentinels is None:
            return [ended[start : start + length] for start in range(0, len(ended), length)]
        document = _Document(text, ids, self.encoder)
        pieces: list[list[int]] = []
        start = 0
        while start < len(ended):
            rearranged = None
            if start < len(ids) and generator.random() < self.settings.fim_rate:
                rearranged = self._rearranged(document, start, self.sentinels, generator)
            stop = document.boundary(start, start + length)
            piece, start = rearranged or (ended[start:stop], stop)
            pieces.append(piece)
        return pieces

    def _rearranged(
        self, document: "_Document", start: int, sentinels: Sentinels, generator: random.Random
    ) -> tuple[list[int], int] | None:
        """The piece from token `start` on, rearranged, and where the next one starts; None where none fits.

        Text in three parts may come to more tokens than in one: its end then goes to the next piece, from a place
        where both begin a token.
        """
        stop = document.boundary(start, start + self.settings.sequence_length - _SENTINELS)
        if min(map(document.character, (start, stop))) < 0:  # a character of more tokens than a sequence has
            return None
        text = document.between(start, stop)
        one, two = sorted(generator.randrange(len(text) + 1) for _ in range(2))
        suffix_first = generator.random() < self.settings.spm_rate
        first = self.encoder.continuing if start else self.encoder
        (prefix,) = first.encode([text[:one]])
        middle, suffix = self.encoder.continuing.encode([text[one:two], text[two:]])
        if prefix is None or middle is None or suffix is None:
            return None
        room = self.settings.sequence_length - _SENTINELS - len(prefix) - len(middle)
        end = [self.encoder.end] * (stop > len(document.ids))
        if len(suffix) + len(end) <= room:
            return [*rearrange(prefix, middle, suffix, sentinels, suffix_first=suffix_first), *end], stop
        begins = self.encoder.continuing.starts(text[two:], suffix)
        for kept in range(min(room, len(suffix) - 1), 0, -1):
            place = document.character(start) + two + int(begins[kept])
            if begins[kept] > 0 and (found := document.token_at(place)) is not None:
                return rearrange(prefix, middle, suffix[:kept], sentinels, suffix_first=suffix_first), found
        return None


@dataclass(frozen=True)
class _Document:
    """A text and its tokens, which are numbered; after the last one comes the number of end-of-text."""

    text: str
    ids: list[int]
    encoder: Encoder

    def character(self, token: int) -> int:
        """Where in the text a token begins."""
        return int(self._starts[token]) if 0 < token < len(self.ids) else len(self.text) * (token > 0)

    def token_at(self, character: int) -> int | None:
        """The token that begins at a character, if one does."""
        found = np.flatnonzero(self._starts == character)
        return int(found[0]) if len(found) else None

    def between(self, start: int, stop: int) -> str:
        """The text of tokens `start` to `stop`."""
        return self.text[self.character(start) : self.character(stop)]

    def boundary(self, start: int, stop: int) -> int:
        """`stop`, or the nearest token between it and `start` that begins a character: one may be several tokens."""
        while start + 1 < stop < len(self.ids) and self._starts[stop] < 0:
            stop -= 1
        return stop

    @cached_property
    def _starts(self) -> np.ndarray:
        return self.encoder.starts(self.text, self.ids)
