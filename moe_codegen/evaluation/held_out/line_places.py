"""Where held-out files are cut for completion: the same places for every model, whatever else is measured."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moe_codegen.metrics import Document

_WORD_END = re.compile(r"(?<=\w)(?!\w)")
LEAST = 3  # characters that are no blanks, in what is asked for


@dataclass(frozen=True)
class Place:
    """A cut in a line of a document: `before` and `after` the missing rest of the line, which is `missing`."""

    document: Document
    offset: int
    before: str
    missing: str
    after: str


def choose_places(documents: Sequence[Document], count: int, characters: int, seed: int = 0) -> list[Place]:
    """In each document up to `count` lines, each cut after a random word of it that leaves something to say.

    After a word tokenizers part anyway, so a model is asked to go on from where it could have stopped itself. The
    random numbers are keyed by seed and document. Lines beyond the first `characters` are not chosen.
    """
    places = []
    for document in documents:
        generator = random.Random(f"{seed}:{document.name}")
        lines = list(_lines(document.text[:characters]))
        for start, line in sorted(generator.sample(lines, min(count, len(lines)))):
            cut = start + generator.choice(_cuts(line))
            end = start + len(line)
            text = document.text
            places.append(Place(document, cut, text[:cut], text[cut:end], text[end:]))
    return places


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that can be cut, each with its offset; the last, which may be part of a line, is none of them."""
    start = 0
    for line in text.split("\n")[:-1]:
        if _cuts(line):
            yield start, line
        start += len(line) + 1


def _cuts(line: str) -> list[int]:
    """Ends of words after which the line goes on with at least `LEAST` characters."""
    return [match.start() for match in _WORD_END.finditer(line) if len("".join(line[match.start() :].split())) >= LEAST]
