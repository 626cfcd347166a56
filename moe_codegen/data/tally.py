"""Counts of files and bytes, kept or dropped and why, by language; and the log of what was dropped."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moe_codegen.data.batch import Dropped, finished
from moe_codegen.data.parquet import ShardWriter

KEPT = "kept"
Counts = dict[str, dict[str, list[int]]]  # reason -> language -> [files, bytes]


class Tally:
    """Files and bytes for each reason and language; `KEPT` is the reason of what was not dropped."""

    def __init__(self, counts: Counts | None = None) -> None:
        self._counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        if counts:
            self.merge(counts)

    def add(self, reason: str, language: str | None, files: int, nbytes: int) -> None:
        """Count `files` files of `nbytes` bytes in all."""
        entry = self._counts[reason][language or "unknown"]
        entry[0] += files
        entry[1] += nbytes

    def merge(self, counts: Counts) -> None:
        """Add the counts of another tally's record."""
        for reason, by_language in counts.items():
            for language, (files, nbytes) in by_language.items():
                self.add(reason, language, files, nbytes)

    def record(self) -> Counts:
        """The counts as JSON holds them, in sorted order."""
        return {
            reason: {language: list(self._counts[reason][language]) for language in sorted(self._counts[reason])}
            for reason in sorted(self._counts)
        }

    def total(self, kept: bool) -> tuple[int, int]:
        """Files and bytes kept, or dropped for any reason."""
        entries = [e for reason, some in self._counts.items() if (reason == KEPT) == kept for e in some.values()]
        return sum(entry[0] for entry in entries), sum(entry[1] for entry in entries)


def merged(records: Iterable[dict[str, Any]]) -> Tally:
    """The sum of the units' tallies."""
    tally = Tally()
    for record in records:
        tally.merge(record["tally"])
    return tally


class UnitOutput:
    """What one unit gives: shards (one in each of `folders`), the log of its dropped rows, and their tally."""

    def __init__(self, folder: Path, number: int, schema: pa.Schema, folders: tuple[str, ...] = ("",)) -> None:
        self.tally = Tally()
        name = f"part-{number:05d}"
        self._writers = {into: ShardWriter(folder / into / f"{name}.parquet", schema) for into in folders}
        self._log_path = folder / "dropped" / f"{name}.jsonl"
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
        shards = []
        for into, writer in self._writers.items():
            with writer:
                pass
            name = f"{into}/{writer.path.name}" if into else writer.path.name
            shards.append({"name": name, "rows": writer.rows})
        self._flush()
        return {"shards": shards, "tally": self.tally.record()}
