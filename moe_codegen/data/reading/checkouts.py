"""Checkouts of repositories: languages by file name, licences by file and by the licence file nearest above it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_codegen.data.reading.files import as_text, digest, walk
from moe_codegen.data.rows.batch import BATCH_BYTES, Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.licenses import identify_license
from moe_codegen.data.rows.schema import Layout
from moe_codegen.errors import SourceError
from moe_codegen.languages import language_of_path

_LAYOUT = Layout("checkouts", {name: name for name in ("repo", "path", "licenses", "content")})
_SKIPPED = {".git", ".hg", ".svn", "node_modules", "__pycache__"}
_LICENSE_FILE = re.compile(r"(?:un)?licen[cs]e(?:\.txt|\.md|\.rst)?|copying(?:\.txt|\.md|\.rst)?")
_LICENSE_BESIDE = re.compile(r"(?!.*(?:third|3rd))(?:licen[cs]e|copying|copyright).*")  # LICENSE-MIT, COPYING.LESSER
_HEADER_BYTES = 4096
_LICENSE_BYTES = 16384
_LARGEST = 64 << 20  # bytes; nobody wrote more into one file of source code, and a batch holds less than 2 GiB


@dataclass(frozen=True, slots=True)
class CheckoutFile:
    """A file by its repository and its path within it, both as the system spells them; the licence is from above it."""

    repo: str
    path: str
    license: str | None
    size: int
    modified: int


@dataclass(frozen=True)
class CheckoutUnit:
    """Some files of some repositories, which are folders of `root`."""

    root: Path
    name: str
    files: tuple[CheckoutFile, ...]
    nbytes: int
    layout: Layout = _LAYOUT

    @property
    def identity(self) -> str:
        """A hash of the files' names, sizes and licences."""
        return digest([(file.repo, file.path, file.license, file.size) for file in self.files], self.layout)

    @property
    def modified(self) -> tuple[int, ...]:
        """When each file was last changed, in nanoseconds."""
        return tuple(file.modified for file in self.files)

    def batches(self) -> Iterator[Batch]:
        """The files' contents; a file that cannot be read is a row with a fault."""
        first = 0
        for chunk in _chunks(map(self._row, self.files)):
            faults = {row: values.pop("fault") for row, values in enumerate(chunk) if "fault" in values}
            columns = {name: [values[name] for values in chunk] for name in ("repo", "path", "licenses", "content")}
            types = {"licenses": pa.list_(pa.string()), "content": pa.binary()}
            arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
            rows = conform(pa.RecordBatch.from_pydict(arrays), self.layout, self.name)
            yield Batch(rows, self.name, first, faults)
            first += len(chunk)

    def _row(self, file: CheckoutFile) -> dict[str, Any]:
        row: dict[str, Any] = {"repo": as_text(file.repo), "path": as_text(file.path)}
        row |= {"licenses": None, "content": None}
        if file.size > _LARGEST:
            return row | {"fault": "too_large"}
        try:
            content = (self.root / file.repo / file.path).read_bytes()
        except OSError:
            return row | {"fault": "unreadable_file"}
        found = identify_license(content[:_HEADER_BYTES].decode("utf-8", "ignore")) or file.license
        return row | {"content": content, "licenses": [found] if found else None}


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
    """Units of about `unit_bytes` over the files of known languages in each repository, in sorted order.

    A folder with `.git` is one repository; in any other each sub-folder, or link to a folder, is one. Links inside a
    repository are not followed. Raises `SourceError` where no file of a known language is found.
    """
    root = root.resolve()
    if (root / ".git").exists():
        root, repositories = root.parent, [root]
    else:
        repositories = sorted(child for child in root.iterdir() if child.is_dir() and child.name not in _SKIPPED)
        _refuse_loose(root)
    files: list[CheckoutFile] = []
    nbytes = number = 0
    for file in (file for repository in repositories for file in _files(repository)):
        files.append(file)
        nbytes += file.size
        if nbytes >= unit_bytes:
            yield CheckoutUnit(root, f"checkouts#{number}", tuple(files), nbytes)
            files, nbytes, number = [], 0, number + 1
    if files:
        yield CheckoutUnit(root, f"checkouts#{number}", tuple(files), nbytes)
    elif not number:
        raise SourceError(f"{root} holds no file of a known language in any of its {len(repositories)} folders")


def is_source_code(name: str) -> bool:
    """Whether a file of that name is of a language that is not found beside every kind of data."""
    return language_of_path(name) not in (None, "markdown")


def _refuse_loose(root: Path) -> None:
    loose = next((child for child in sorted(root.iterdir()) if child.is_file() and is_source_code(child.name)), None)
    if loose:
        raise SourceError(
            f"{as_text(loose)} is in no repository: each folder of {as_text(root)} is one. If all of it is one "
            "repository, move it into a folder of its own and give that one"
        )


def _files(repository: Path) -> Iterator[CheckoutFile]:
    above: dict[Path, str | None] = {}
    for folder, folders, names in walk(repository, _SKIPPED):
        here = _license_in(folder, folders, names)
        license = above[folder] = above.get(folder.parent) if here is None else here or None
        for path in (folder / name for name in names if language_of_path(name)):
            if path.is_file() and not path.is_symlink():
                about = path.stat()
                inside = str(path.relative_to(repository))
                yield CheckoutFile(repository.name, inside, license, about.st_size, about.st_mtime_ns)


def _license_in(folder: Path, folders: list[str], names: list[str]) -> str | None:
    """What the licence files in a folder name: None where there is none, empty where its text is not known.

    Folders beneath are not looked at, since the licence of something bundled there is not this folder's; but a wheel's
    licence lies in its dist-info.
    """
    paths = [folder / name for name in names]
    for name in folders:
        if name.endswith(".dist-info"):
            paths += [*sorted((folder / name).glob("*")), *sorted((folder / name).glob("licenses/*"))]
    own = [path for path in paths if _LICENSE_FILE.fullmatch(path.name.lower())]
    beside = [path for path in paths if _LICENSE_BESIDE.match(path.name.lower()) and not is_source_code(path.name)]
    known = (identify_license(_head(path)) for path in own or beside if path.is_file())
    return next(filter(None, known), "" if own else None)


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LICENSE_BYTES).decode("utf-8", "ignore")
    except OSError:
        return ""
