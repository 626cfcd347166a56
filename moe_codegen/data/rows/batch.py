"""A batch of rows on its way through a verb, and the rows of it that hold no text at all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A batch holds about this many bytes: large enough for whole-buffer operations, small enough for the cache.
BATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class Batch:
    """Rows in our columns, `content` as binary; row `i` is row `first_row + i` of `origin`.

    Once rows have been taken out, `numbers` has the former `i` of each row that is left. `faults` names what kept a row
    (by its number in the batch) from being read at all.
    """

    rows: pa.RecordBatch
    origin: str
    first_row: int
    faults: dict[int, str] = field(default_factory=dict)
    numbers: np.ndarray | None = None

    def row_in_origin(self, row: int) -> int:
        """The number of row `row` of this batch in `origin`."""
        return self.first_row + (row if self.numbers is None else int(self.numbers[row]))


@dataclass(frozen=True)
class Dropped:
    """A row put aside: what for, and where it came from."""

    reason: str
    language: str | None
    size: int
    record: dict[str, Any]

    @classmethod
    def of(
        cls, batch: Batch, reasons: Mapping[int, str], details: Mapping[int, dict[str, Any]] | None = None
    ) -> list["Dropped"]:
        """The rows of `batch` that have a reason, in their order; `details` of a row go into its record."""
        if not reasons:
            return []
        rows = sorted(reasons)
        named = batch.rows.select(["repo", "path", "language"]).take(pa.array(rows)).to_pylist()
        sizes = pc.fill_null(pc.binary_length(batch.rows.column("content")), 0)
        dropped = []
        for row, names in zip(rows, named, strict=True):
            found = {"reason": reasons[row], **(details or {}).get(row, {}), **names, "size": sizes[row].as_py()}
            where = {"origin": batch.origin, "row": batch.row_in_origin(row)}
            dropped.append(cls(reasons[row], names["language"], found["size"], found | where))
        return dropped


def split_sound(batch: Batch) -> tuple[Batch, np.ndarray, list[Dropped]]:
    """The rows whose content is text, their numbers in `batch`, and the others.

    Put aside: what its reader could not read, null, not UTF-8 (lone surrogates included), and empty content.
    """
    content = batch.rows.column("content")
    faults = dict(batch.faults)
    for mask, fault in ((content.is_null(), "null_content"), (pc.equal(pc.binary_length(content), 0), "empty")):
        for row in np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False)).tolist():
            faults.setdefault(row, fault)
    try:
        content.cast(pa.string())
    except pa.ArrowInvalid:
        for row, text in enumerate(content):
            if row not in faults and not _is_utf8(text.as_py()):
                faults[row] = "invalid_utf8"
    if not faults:
        return batch, np.arange(batch.rows.num_rows), []
    sound = np.setdiff1d(np.arange(batch.rows.num_rows), list(faults))
    kept = Batch(batch.rows.take(pa.array(sound)), batch.origin, batch.first_row, numbers=sound)
    return kept, sound, Dropped.of(batch, faults)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_buffer(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a binary column (N,) uint8 and its offsets (F + 1,) int64, the first of which is 0; no copy."""
    offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4).astype(np.int64)
    length = int(offsets[-1] - offsets[0])
    values = column.buffers()[2]
    data = np.frombuffer(values, np.uint8, length, int(offsets[0])) if length else np.zeros(0, np.uint8)
    return data, offsets - offsets[0]


def each_text(column: pa.Array) -> Iterator[memoryview]:
    """The bytes of each file of a binary column without nulls; no copy."""
    data_N, offsets = text_buffer(column)
    view = data_N.data
    return (view[start:end] for start, end in pairwise(offsets.tolist()))
