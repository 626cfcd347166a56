"""JSON Lines: read line by line, so that one bad line costs one row and not the file."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_codegen.data.reading.files import as_text, digest
from moe_codegen.data.rows.batch import BATCH_BYTES, Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.schema import Layout, LayoutFinder
from moe_codegen.errors import ColumnError, SourceError

_FIRST_ROWS, _FIRST_BYTES = 1000, 16 << 20  # looked at for their keys, whichever ends first
_COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": lambda path: io.BufferedReader(pa.CompressedInputStream(pa.OSFile(os.fsencode(path)), "zstd")),
}


@dataclass(frozen=True)
class JsonlUnit:
    """The lines that start in a byte range of one file; a compressed file is one range."""

    path: Path
    name: str
    start: int
    end: int
    nbytes: int
    layout: Layout

    @property
    def identity(self) -> str:
        """A hash of which rows these are and how they are read."""
        return digest(self.start, self.end, self.layout)

    @property
    def modified(self) -> tuple[int, ...]:
        """When the file was last changed, in nanoseconds."""
        return (self.path.stat().st_mtime_ns,)

    def batches(self) -> Iterator[Batch]:
        """The rows. A row is numbered by its line within the unit; its origin names the byte the unit starts at."""
        rows: list[dict[str, Any]] = []
        faults: dict[int, str] = {}
        first = held = 0
        layout = self.layout.of_uneven_rows()
        for line in _lines(self.path, self.start, self.end):
            row, fault = _parse(line, layout)
            if fault:
                faults[len(rows)] = fault
            rows.append(row)
            held += len(line)
            if held >= BATCH_BYTES:
                yield self._batch(rows, first, faults, layout)
                first += len(rows)
                rows, faults, held = [], {}, 0
        if rows:
            yield self._batch(rows, first, faults, layout)

    def _batch(self, rows: list[dict[str, Any]], first: int, faults: dict[int, str], layout: Layout) -> Batch:
        columns = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowException, OverflowError) as error:
                raise ColumnError(
                    f"column `{name}` holds values of more than one type in {self.name}: {error}"
                ) from error
        for name in layout.sources("content"):
            columns.setdefault(name, pa.nulls(len(rows)))
        return Batch(conform(pa.RecordBatch.from_pydict(columns), layout, self.name), self.name, first, faults)


def jsonl_units(path: Path, root: Path, find: LayoutFinder, unit_bytes: int) -> Iterator[JsonlUnit]:
    """Byte ranges of about `unit_bytes` of `path`; the layout is told from its first rows. None of an empty file."""
    name, size = as_text(path.relative_to(root)), path.stat().st_size
    if not (keys := _keys(path, name)):
        return
    step = size if path.suffix in _COMPRESSED else unit_bytes
    layout = find(keys, name)
    for start in range(0, size, max(step, 1)):
        end = min(start + step, size)
        yield JsonlUnit(path, f"{name}@{start}", start, end, end - start, layout)


def _keys(path: Path, name: str) -> list[str]:
    """The keys of the first rows together, since a row may leave out what it has no value for; none: it is empty."""
    keys: dict[str, None] = {}
    held = line_number = 0
    for line_number, line in enumerate(_lines(path, 0, path.stat().st_size), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            keys |= dict.fromkeys(row)
        held += len(line)
        if keys and (line_number >= _FIRST_ROWS or held >= _FIRST_BYTES):
            break
    if line_number and not keys:
        raise SourceError(f"{name} holds no line that is a JSON object; a file of one large array is not read")
    return list(keys)


def _lines(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The lines whose first byte lies in [start, end); blank ones are skipped."""
    try:
        if path.suffix in _COMPRESSED:
            with _COMPRESSED[path.suffix](path) as file:
                yield from (line for line in file if line.strip())
            return
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()
            while file.tell() < end and (line := file.readline()):
                if line.strip():
                    yield line
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{as_text(path)} is damaged: {error}") from error


def _parse(line: bytes, layout: Layout) -> tuple[dict[str, Any], str]:
    """A line's columns that the layout reads, and what is wrong with it, if anything."""
    try:
        row = json.loads(line.decode("utf-8-sig"))  # left to itself, `json` lets encoded surrogates pass
    except UnicodeDecodeError:
        return {}, "invalid_utf8"
    except (ValueError, RecursionError):
        return {}, "malformed_json"
    if not isinstance(row, dict):
        return {}, "malformed_json"
    wanted = {name: row[name] for name in layout.projection(list(row))}
    if b"\\u" in line:
        try:
            json.dumps(wanted, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return {}, "lone_surrogate"
    return wanted, ""
