"""JSON Lines: read line by line, so that one bad line costs one row and not the file."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from moe_codegen.data.rows.batch import BATCH_BYTES, Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.schema import Layout, detect_layout
from moe_codegen.errors import ColumnError, SourceError


@dataclass(frozen=True)
class JsonlUnit:
    """The lines that start in a byte range of one file; a compressed file is one range."""

    path: Path
    name: str
    start: int
    end: int
    nbytes: int
    layout: Layout

    def batches(self) -> Iterator[Batch]:
        """The rows. A row is numbered by its line within the unit; its origin names the byte the unit starts at."""
        rows: list[dict[str, Any]] = []
        faults: dict[int, str] = {}
        first = held = 0
        for line in _lines(self.path, self.start, self.end):
            row, fault = _parse(line, self.layout)
            if fault:
                faults[len(rows)] = fault
            rows.append(row)
            held += len(line)
            if held >= BATCH_BYTES:
                yield self._batch(rows, first, faults)
                first += len(rows)
                rows, faults, held = [], {}, 0
        if rows:
            yield self._batch(rows, first, faults)

    def _batch(self, rows: list[dict[str, Any]], first: int, faults: dict[int, str]) -> Batch:
        columns = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowException, OverflowError) as error:
                raise ColumnError(
                    f"column `{name}` holds values of more than one type in {self.name}: {error}"
                ) from error
        for name in self.layout.sources("content"):
            columns.setdefault(name, pa.nulls(len(rows)))
        return Batch(conform(pa.RecordBatch.from_pydict(columns), self.layout, self.name), self.name, first, faults)


def jsonl_units(path: Path, root: Path, layout: Layout | None, unit_bytes: int) -> Iterator[JsonlUnit]:
    """Byte ranges of about `unit_bytes` of `path`; the layout is told from its first row that can be read."""
    name, size = str(path.relative_to(root)), path.stat().st_size
    step = size if path.suffix == ".gz" else unit_bytes
    layout = layout or _detect(path, name)
    for start in range(0, max(size, 1), max(step, 1)):
        end = min(start + step, size)
        yield JsonlUnit(path, f"{name}@{start}", start, end, end - start, layout)


def _detect(path: Path, name: str) -> Layout:
    for line in _lines(path, 0, path.stat().st_size):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return detect_layout(list(row), name)
    raise SourceError(f"{name} holds no line that is a JSON object")


def _lines(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The lines whose first byte lies in [start, end); blank ones are skipped."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                yield from (line for line in file if line.strip())
            return
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()
            while file.tell() < end and (line := file.readline()):
                if line.strip():
                    yield line
    except (OSError, EOFError) as error:
        raise SourceError(f"{path} is damaged: {error}") from error


def _parse(line: bytes, layout: Layout) -> tuple[dict[str, Any], str]:
    """A line's columns that the layout reads, and what is wrong with it, if anything."""
    try:
        row = json.loads(line.decode())  # left to itself, `json` lets encoded surrogates pass
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
