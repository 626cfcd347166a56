"""The files under a folder, their names as text, and the identity of what is read of them."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import xxhash

from moe_codegen.errors import SourceError


def walk(
    root: Path, skipped: Collection[str], *, follow_links: bool = False
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder from `root` down with the names of its folders and files, sorted, without the `skipped` folders.

    A folder that is reached by several links is met once. Raises `SourceError` for one that cannot be listed.
    """
    met: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=follow_links, onerror=_refuse):
        if follow_links:
            if (real := os.path.realpath(folder)) in met:
                folders.clear()
                continue
            met.add(real)
        folders[:] = sorted(name for name in folders if name not in skipped)
        yield Path(folder), folders, sorted(names)


def _refuse(error: OSError) -> None:
    raise SourceError(f"{as_text(error.filename)} cannot be listed: {error.strerror}") from error


def as_text(path: str | Path) -> str:
    """A path for people, rows and JSON: bytes of it that are not UTF-8 are replaced, and it may not open the file."""
    return os.fsencode(path).decode("utf-8", "replace")


def digest(*parts: Any) -> str:
    """A hash of what the parts' `repr` says: the same in every process and on every machine."""
    return xxhash.xxh3_128_hexdigest(repr(parts).encode("utf-8", "surrogateescape"))
