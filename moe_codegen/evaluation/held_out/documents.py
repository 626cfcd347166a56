"""The held-out files that models are measured on: the same ones for every model."""

import hashlib
from bisect import insort
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from moe_codegen.errors import ConfigError
from moe_codegen.languages import LANGUAGES, canonical_language
from moe_codegen.metrics import Document
from moe_codegen.metrics.documents import stream_documents


def read_documents(
    source: str | Path, languages: Sequence[str], *, documents: int, per_repository: int, seed: int = 0
) -> list[Document]:
    """Up to `documents` files of each language, and of one repository up to `per_repository` of them.

    Which ones depends on the seed and the files' contents alone, not on their order. Files of one repository are
    alike, so a few from each of many say more than many from a few.

    Args:
        source: anything `moe-codegen data` reads, best the `validation` folder that `data split` made.
        languages: as `data` spells them, such as cpp.

    Raises:
        ConfigError: an unknown language, one without files, or a folder with a training half beside the validation.
        SourceError: nothing there that can be read.
    """
    wanted = [canonical_language(language) for language in languages]
    for language in wanted:
        if language not in LANGUAGES:
            raise ConfigError(f"unknown language {language!r}; known are {', '.join(LANGUAGES)}")
    chosen = {language: _Choice(documents, per_repository) for language in wanted}
    for document in stream_documents(source):
        if document.language in chosen:
            place = hashlib.sha256(f"{seed}:{document.text}".encode()).hexdigest()
            chosen[document.language].offer(place, document)
    for language, choice in chosen.items():
        if not choice.taken:
            raise ConfigError(f"the data holds no {language} file; leave {language} out of the languages")
    return [document for choice in chosen.values() for _, document in choice.taken]


def digest_of(documents: Sequence[Document]) -> str:
    """SHA-256 over names, languages and texts."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update("\0".join((document.name, document.language, document.text, "")).encode())
    return digest.hexdigest()


def shortened(document: Document, characters: int) -> Document:
    """The document's whole lines within its first `characters`; of a longer first line, that many characters."""
    if len(document.text) <= characters:
        return document
    end = document.text.rfind("\n", 0, characters) + 1 or characters
    return Document(document.name, document.repository, document.language, document.text[:end])


class _Choice:
    """Of the documents offered the first `most` by their places, of one repository up to `per_repository`.

    Attributes:
        taken: (place, document) in that order; of one name there is one.
    """

    def __init__(self, most: int, per_repository: int) -> None:
        self._most, self._per_repository = most, per_repository
        self.taken: list[tuple[str, Document]] = []

    def offer(self, place: str, document: Document) -> None:
        """Take `document`, if it comes before one that is taken or there is room."""
        if len(self.taken) == self._most and place >= self.taken[-1][0]:
            return
        namesakes = [one for one in self.taken if one[1].name == document.name]
        of_repository = [one for one in self.taken if one[1].repository == document.repository]
        if namesakes or len(of_repository) == self._per_repository:
            last = namesakes[-1] if namesakes else of_repository[-1]
            if place >= last[0]:
                return
            self.taken.remove(last)
        insort(self.taken, (place, document), key=itemgetter(0))
        del self.taken[self._most :]
