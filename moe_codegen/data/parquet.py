"""Parquet shards: read in pieces of bounded memory, written in row groups of bounded size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from moe_codegen.data.batch import Batch, rows_per_batch
from moe_codegen.data.conform import conform
from moe_codegen.data.schema import Layout, detect_layout
from moe_codegen.errors import SourceError

ROW_GROUP_BYTES = 16 << 20


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

    def batches(self) -> Iterator[Batch]:
        """The rows; pages are decoded as they are needed, so that a row group may be larger than memory."""
        with _opened(self.path) as file:
            origin = self.name.partition("#")[0]
            row = self.first_row
            wanted = self.layout.projection(file.schema_arrow.names)
            size = rows_per_batch(self.nbytes / max(self.rows, 1))
            try:
                for batch in file.iter_batches(size, list(self.row_groups), wanted, use_threads=False):
                    yield Batch(conform(batch, self.layout, origin), origin, row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise SourceError(f"{self.path} is damaged after row {row}: {error}") from error


def parquet_units(path: Path, root: Path, layout: Layout | None, unit_bytes: int) -> Iterator[ParquetUnit]:
    """Units of about `unit_bytes` of text, each of whole row groups of `path`; named by the path under `root`."""
    with _opened(path) as file:
        metadata, names = file.metadata, file.schema_arrow.names
    name = str(path.relative_to(root))
    layout = layout or detect_layout(names, name)
    content = layout.sources("content")[0]
    if content not in names:
        detect_layout([], f"{name} ({', '.join(names)})")
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
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error


class ShardWriter:
    """Writes one shard; batches are gathered into row groups of about `ROW_GROUP_BYTES`.

    What is written depends on the batches alone, never on when they came.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self.rows = self.nbytes = 0
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_dictionary(schema))

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of the shard's schema."""
        if not batch.num_rows:
            return
        self._held.append(batch.cast(self.schema))
        self.rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=self.rows)
            self.nbytes += self._held_bytes
            self._held, self._held_bytes = [], 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def record(self) -> dict[str, str | int]:
        """What the manifest says of the shard."""
        return {"name": self.path.name, "rows": self.rows}


def _dictionary(schema: pa.Schema) -> list[str]:
    """Columns of few values; a dictionary of whole files would only cost time."""
    return [name for name in ("repo", "language") if name in schema.names]
