"""What a unit gives: Parquet shards in row groups of bounded size, and the log of its dropped rows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from moe_codegen.data.passes.tally import KEPT, Tally
from moe_codegen.data.rows.batch import Dropped, each_text

ROW_GROUP_BYTES = 16 << 20


def part_name(number: int) -> str:
    """What a unit's shard is called."""
    return f"part-{number:05d}.parquet"


class UnitOutput:
    """What one unit gives: shards, the log of its dropped rows, and their tally.

    `shards` are the names under `folder` of the files that `keep` writes into, by what it calls them.
    """

    def __init__(self, folder: Path, number: int, schema: pa.Schema, shards: Mapping[str, str] | None = None) -> None:
        self.tally = Tally()
        shards = {"": part_name(number)} if shards is None else shards
        self._writers = {into: ShardWriter(folder, name, schema) for into, name in shards.items()}
        self._log_path = (folder / "dropped" / part_name(number)).with_suffix(".jsonl")
        self._log: list[str] = []
        self._log_path.unlink(missing_ok=True)

    def keep(self, rows: pa.RecordBatch, into: str = "") -> None:
        """Write rows in our columns, `content` as binary."""
        done = finished(rows)
        self._writers[into].write(done)
        for entry in pc.value_counts(done.column("language")).to_pylist():
            mine = pc.equal(done.column("language"), entry["values"]) if entry["values"] else done["language"].is_null()
            nbytes = pc.sum(pc.filter(done.column("size"), mine)).as_py()
            self.tally.add(KEPT, entry["values"], entry["counts"], nbytes)

    def drop(self, dropped: Iterable[Dropped]) -> None:
        """Log and count dropped rows."""
        for one in dropped:
            self.tally.add(one.reason, one.language, 1, one.size)
            self._log.append(json.dumps(one.record, ensure_ascii=False, sort_keys=True))
        if len(self._log) >= 4096:
            self._flush()

    def _flush(self) -> None:
        if self._log:
            self._log_path.parent.mkdir(exist_ok=True)
            with self._log_path.open("a", encoding="utf-8") as file:
                file.write("\n".join(self._log) + "\n")
            self._log.clear()

    def close(self) -> dict[str, Any]:
        """Finish the files; returns the unit's record: shards and tally."""
        shards = [writer.close() for writer in self._writers.values()]
        self._flush()
        return {"shards": shards, "tally": self.tally.record()}


def finished(rows: pa.RecordBatch) -> pa.RecordBatch:
    """`rows` as they are written: `content` as text, and `size` and `hexsha` filled in where the source had none."""
    contents = rows.column("content")
    # Not looked through again for what is no UTF-8: `split_sound` has put that aside.
    filled = {"content": contents.cast(pa.string(), safe=False), "size": pc.binary_length(contents).cast(pa.int64())}
    hashes = rows.column("hexsha")
    if hashes.null_count:
        computed = map(xxhash.xxh3_128_hexdigest, each_text(contents))
        filled["hexsha"] = pa.array([n or c for n, c in zip(hashes.to_pylist(), computed, strict=True)], pa.string())
    for name, column in filled.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


class ShardWriter:
    """Writes one shard; batches are gathered into row groups of about `ROW_GROUP_BYTES`.

    What is written depends on the batches alone, never on when they came.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._name, self._schema = name, schema
        self._rows = self._held_bytes = 0
        self._held: list[pa.RecordBatch] = []
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_dictionary(schema))

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of the shard's schema."""
        if not batch.num_rows:
            return
        self._held.append(batch.cast(self._schema))
        self._rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held), row_group_size=self._rows)
            self._held, self._held_bytes = [], 0

    def close(self) -> dict[str, Any]:
        """Finish the file; returns what the manifest says of it."""
        self._flush()
        self._writer.close()
        return {"name": self._name, "rows": self._rows}


def _dictionary(schema: pa.Schema) -> list[str]:
    """Columns of few values; a dictionary of whole files would only cost time."""
    return [name for name in ("repo", "language") if name in schema.names]
