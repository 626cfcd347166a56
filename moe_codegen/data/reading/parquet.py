"""Parquet files, read in pieces of bounded memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_codegen.data.reading.files import as_text, digest
from moe_codegen.data.rows.batch import BATCH_BYTES, Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.schema import Layout, LayoutFinder
from moe_codegen.errors import SourceError


@dataclass(frozen=True)
class ParquetUnit:
    """Some consecutive row groups of one file; `first_row` is the number of the first row in the file."""

    path: Path
    name: str
    row_groups: tuple[int, ...]
    first_row: int
    rows: int
    nbytes: int
    layout: Layout

    @property
    def identity(self) -> str:
        """A hash of which rows these are and how they are read."""
        return digest(self.row_groups, self.first_row, self.rows, self.layout)

    @property
    def modified(self) -> tuple[int, ...]:
        """When the file was last changed, in nanoseconds."""
        return (self.path.stat().st_mtime_ns,)

    def batches(self) -> Iterator[Batch]:
        """The rows; pages are decoded as they are needed, so that a row group may be larger than memory."""
        with _opened(self.path) as file:
            origin = self.name.partition("#")[0]
            row = self.first_row
            wanted = self.layout.projection(file.schema_arrow.names)
            size = int(np.clip(BATCH_BYTES * self.rows / max(self.nbytes, 1), 1, 1024))
            try:
                for batch in file.iter_batches(size, list(self.row_groups), wanted, use_threads=False):
                    yield Batch(conform(batch, self.layout, origin), origin, row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise SourceError(f"{as_text(self.path)} is damaged after row {row}: {error}") from error


def parquet_units(path: Path, root: Path, find: LayoutFinder, unit_bytes: int) -> Iterator[ParquetUnit]:
    """Units of about `unit_bytes` of text, each of whole row groups of `path`; named by the path under `root`."""
    with _opened(path) as file:
        metadata, names = file.metadata, file.schema_arrow.names
    name = as_text(path.relative_to(root))
    layout = find(names, name)
    content = layout.sources("content")[0]
    column = next((i for i in range(metadata.num_columns) if metadata.schema.column(i).path == content), None)
    groups: list[int] = []
    first_row = rows = nbytes = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        groups.append(group)
        rows += row_group.num_rows
        nbytes += row_group.column(column).total_uncompressed_size if column is not None else 0
        if nbytes >= unit_bytes or group == metadata.num_row_groups - 1:
            yield ParquetUnit(path, f"{name}#{groups[0]}", tuple(groups), first_row, rows, nbytes, layout)
            first_row += rows
            groups, rows, nbytes = [], 0, 0
    if not metadata.num_row_groups:
        yield ParquetUnit(path, f"{name}#0", (), 0, 0, 0, layout)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        # Buffered and without prefetching: otherwise a whole column of a row group is held, however large.
        # By bytes: a name as text would have to be UTF-8.
        return pq.ParquetFile(pa.OSFile(os.fsencode(path)), pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{as_text(path)} cannot be read as Parquet: {error}") from error
