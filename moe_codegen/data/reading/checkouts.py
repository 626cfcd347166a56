"""A folder of repositories: each sub-folder is one; languages by file name, licences by file and by repository."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_codegen.data.rows.batch import BATCH_BYTES, Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.licenses import identify_license
from moe_codegen.data.rows.schema import LAYOUTS, Layout
from moe_codegen.errors import SourceError
from moe_codegen.languages import language_of_path

_LICENSE_FILES = ("license", "licence", "copying", "copyright")
_SKIPPED = {".git", ".hg", ".svn", "node_modules", "__pycache__"}
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class CheckoutUnit:
    """Some files, as (repository, path within it), and the licence of each of the repositories."""

    root: Path
    name: str
    files: tuple[tuple[str, str], ...]
    licenses: dict[str, str | None]
    nbytes: int
    layout: Layout

    def batches(self) -> Iterator[Batch]:
        """The files' contents; a file that cannot be read is a row with a fault."""
        first = 0
        for chunk in _chunks(self._rows()):
            faults = {row: values.pop("fault") for row, values in enumerate(chunk) if "fault" in values}
            columns = {name: [values[name] for values in chunk] for name in ("repo", "path", "licenses", "content")}
            types = {"licenses": pa.list_(pa.string()), "content": pa.binary()}
            arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
            rows = conform(pa.RecordBatch.from_pydict(arrays), self.layout, self.name)
            yield Batch(rows, self.name, first, faults)
            first += len(chunk)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for repo, path in self.files:
            row: dict[str, Any] = {"repo": repo, "path": path, "licenses": None, "content": None}
            try:
                row["content"] = (self.root / repo / path).read_bytes()
            except OSError:
                row["fault"] = "unreadable_file"
            else:
                header = row["content"][:_HEADER_BYTES].decode("utf-8", "ignore")
                found = identify_license(header) or self.licenses[repo]
                row["licenses"] = [found] if found else None
            yield row


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows gathered into lists whose contents amount to about `BATCH_BYTES` each."""
    chunk: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += len(row["content"] or b"")
        if held >= BATCH_BYTES or len(chunk) >= 1024:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def checkout_units(root: Path, unit_bytes: int) -> Iterator[CheckoutUnit]:
    """Units of about `unit_bytes` over the files of known languages in each repository under `root`, in sorted order.

    Links are not followed. Raises `SourceError` where no file of a known language is found.
    """
    files: list[tuple[str, str]] = []
    licenses: dict[str, str | None] = {}
    nbytes = number = 0
    for repository in sorted(child for child in root.iterdir() if child.is_dir() and child.name not in _SKIPPED):
        licenses[repository.name] = _repository_license(repository)
        for path in _files(repository):
            files.append((repository.name, path))
            nbytes += (repository / path).stat().st_size
            if nbytes >= unit_bytes:
                yield _unit(root, number, files, licenses, nbytes)
                files, nbytes, number = [], 0, number + 1
    if files:
        yield _unit(root, number, files, licenses, nbytes)
    elif not number:
        raise SourceError(f"{root} holds no file of a known language in any of its {len(licenses)} folders")


def _unit(
    root: Path, number: int, files: list[tuple[str, str]], licenses: dict[str, str | None], nbytes: int
) -> CheckoutUnit:
    mine = {repo: licenses[repo] for repo, _ in files}
    return CheckoutUnit(root, f"checkouts#{number}", tuple(files), mine, nbytes, LAYOUTS["moe-codegen"])


def _files(repository: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(repository):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(folder, name)
            if language_of_path(name) and path.is_file() and not path.is_symlink():
                yield os.fsencode(path.relative_to(repository)).decode("utf-8", "replace")


def _repository_license(repository: Path) -> str | None:
    """The licence that the repository's own licence file names: the one nearest to its top, at most three folders down.

    Packages keep theirs beneath a folder of their name and version.
    """
    for depth in range(4):
        for path in sorted(repository.glob("*/" * depth + "*")):
            if path.name.lower().startswith(_LICENSE_FILES) and path.is_file():
                found = identify_license(path.read_text("utf-8", "ignore"))
                if found:
                    return found
    return None
