"""Source code that any machine with Python and torch already holds, grouped by language."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = {
    "python": (".py",),
    "javascript": (".js", ".mjs"),
    "cpp": (".h", ".hpp", ".cpp", ".cuh"),
}
# Bytes of each: what a small model can learn in two minutes, and mostly the language the demo completes.
BUDGETS = {"python": 600_000, "javascript": 45_000, "cpp": 60_000}
# Tables of characters and topics, machine-written kernels, vendored copies: bytes that hold little program.
SKIPPED_FOLDERS = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "encodings",
    "lib2to3",
    "pydoc_data",
    "test",
    "tests",
    "testing",
    "_vendor",
    "generated",
    "ops",
}
FILE_BYTES = range(600, 48_000)
MAX_LINE, MAX_MEAN_LINE = 400, 90


@dataclass(frozen=True)
class Document:
    """One source file: its path below the folder it was found in, its language and its text."""

    path: str
    language: str
    text: str


def source_roots() -> list[Path]:
    """Where Python keeps its standard library and the installed packages."""
    found = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
    return list(dict.fromkeys(path.resolve() for path in found if path.is_dir()))


def gather_sources(
    roots: list[Path] | None = None, budgets: dict[str, int] | None = None, seed: int = 0
) -> list[Document]:
    """The same files for the same `seed` and installed packages, up to `budgets` bytes of each language.

    The first root that has a language gives most of it: the standard library, which is alike on every machine.
    Within a root files are taken in the order of a hash of seed and path, so that neither the order in which a file
    system lists them nor the folder they are installed in matters.
    """
    candidates: dict[str, list[tuple[int, str, str, Path]]] = {language: [] for language in LANGUAGES}
    for priority, root in enumerate(source_roots() if roots is None else roots):
        for path, language in _source_files(root):
            name = path.relative_to(root).as_posix()
            order = hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
            candidates[language].append((priority, order, name, path))
    documents = []
    for language, budget in (BUDGETS if budgets is None else budgets).items():
        for _, _, name, path in sorted(candidates[language]):
            if budget <= 0:
                break
            text = _program_text(path)
            if text is not None:
                documents.append(Document(name, language, text))
                budget -= len(text.encode())
    return documents


def _source_files(root: Path) -> Iterator[tuple[Path, str]]:
    languages = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for file in files:
            language = languages.get(os.path.splitext(file)[1])
            if language:
                yield Path(folder, file), language


def _program_text(path: Path) -> str | None:
    """The file's text, or None where it is too small, too large, minified, or not text at all."""
    try:
        if path.stat().st_size not in FILE_BYTES:
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    lengths = [len(line) for line in text.splitlines()]
    if max(lengths) > MAX_LINE or sum(lengths) > MAX_MEAN_LINE * len(lengths):
        return None
    return text
