"""The held-out files that models are measured on: the same ones for every model."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from moe_codegen.data import open_source
from moe_codegen.data.rows.batch import split_sound
from moe_codegen.errors import ConfigError
from moe_codegen.languages import LANGUAGES, canonical_language
from moe_codegen.metrics import Document


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
    if (Path(source) / "train").is_dir() and (Path(source) / "validation").is_dir():
        raise ConfigError(f"{source} holds training files too; give {Path(source) / 'validation'}")
    found: dict[str, list[tuple[str, Document]]] = {language: [] for language in wanted}
    for unit in open_source(source).units:
        for batch in unit.batches():
            sound = split_sound(batch)[0]
            columns = (sound.rows.column(name).to_pylist() for name in ("repo", "path", "language", "content"))
            for repository, path, language, content in zip(*columns, strict=True):
                if language in found and content.strip():
                    digest = hashlib.sha256(f"{seed}:".encode() + content).hexdigest()
                    name = f"{repository}/{path}" if repository and path else digest[:16]
                    document = Document(name, repository or name, language, content.decode())
                    found[language].append((digest, document))
    return [
        document for language in wanted for document in _choose(found[language], language, documents, per_repository)
    ]


def digest_of(documents: Sequence[Document]) -> str:
    """SHA-256 over names, languages and texts."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update("\0".join((document.name, document.language, document.text, "")).encode())
    return digest.hexdigest()


def shortened(document: Document, characters: int | None) -> Document:
    """The document's whole lines within its first `characters`; of a longer first line, that many characters."""
    if characters is None or len(document.text) <= characters:
        return document
    end = document.text.rfind("\n", 0, characters) + 1 or characters
    return Document(document.name, document.repository, document.language, document.text[:end])


def _choose(found: list[tuple[str, Document]], language: str, documents: int, per_repository: int) -> list[Document]:
    if not found:
        raise ConfigError(f"the data holds no {language} file; leave {language} out of the languages")
    taken: list[Document] = []
    repositories: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for _, document in sorted(found, key=lambda one: one[0]):
        if len(taken) < documents and repositories[document.repository] < per_repository and not names[document.name]:
            repositories[document.repository] += 1
            names[document.name] += 1
            taken.append(document)
    return taken
