"""`split`: training and validation by repository, and no near-duplicate of a validation file in training.

The search for near-duplicates across the split is exact, not by bands: an inverted index of the validation files'
shingles gives the intersection with every one of them, hence the Jaccard similarity itself. A training file can only
be similar to `t` if that share of its shingles is in the index at all, which settles nearly every file at once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from moe_codegen.data.deduplication.shingles import shingles
from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Batch, Dropped, split_sound
from moe_codegen.settings import check_between, setting

TRAIN, VALIDATION = "train", "validation"
_INDEX_SHINGLES = 16 << 20  # sorted at once, in memory


@dataclass(frozen=True)
class SplitSettings:
    """How much goes to validation, and what counts as a near-duplicate there."""

    validation: float = setting(0.05, "share of the repositories that go to validation")
    similarity: float = setting(0.7, "Jaccard similarity from which a training file is dropped for a validation file")
    seed: int = setting(0, "which repositories go to validation")

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "validation", open_ended=True)
        check_between(self, 0, 1, "similarity")


def split(
    source: Source, out: str | Path, settings: SplitSettings | None = None, *, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Write `source` to `out/train` and `out/validation`; returns the manifest.

    A file without a repository is one of its own. Twins are dropped from training, so that validation stays as drawn.
    """
    return run_stage("split", source, out, settings or SplitSettings(), _split, num_proc=num_proc, quiet=quiet)


def _split(stage: Stage) -> tuple[Record, list[Record]]:
    records = stage.map("held_out", hold_out_unit, stage.settings)
    held_out, twins = stage.work / "held_out", stage.work / "twins"
    blocks = _index_blocks([record["shingles"] for record in records])
    for number, block in enumerate(blocks):
        build_index(held_out, block, twins / f"index-{number:03d}")
    stage.map("twins", find_twins_unit, stage.settings, len(blocks))
    records = stage.map(OUTPUT, divide_unit, stage.settings, twins)
    rows = {
        into: sum(s["rows"] for r in records for s in r["shards"] if s["name"].startswith(into))
        for into in (TRAIN, VALIDATION)
    }
    return {"tally": merged(records).record(), "split_rows": rows}, records


def _to_validation(batch: Batch, settings: SplitSettings) -> np.ndarray:
    """Which rows go to validation, by the hash of their repository (or of their content, where they have none)."""
    content = batch.rows.column("content")
    names = (
        repo.encode() if repo else content[row].as_py()
        for row, repo in enumerate(batch.rows.column("repo").to_pylist())
    )
    hashes = [xxhash.xxh64_intdigest(name, seed=settings.seed) for name in names]
    return np.array(hashes, np.float64) < settings.validation * 2.0**64


def _sets(batch: Batch, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct shingles of those rows, 32 bits each, and their offsets; a file of too few words is one shingle."""
    content = batch.rows.column("content")
    made = shingles(content)
    parts = []
    for row in rows.tolist():
        some = np.unique((made.of(row) >> np.uint64(32)).astype(np.uint32))
        parts.append(some if len(some) else np.array([xxhash.xxh32_intdigest(content[row].as_py())], np.uint32))
    offsets = np.cumsum([0] + [len(part) for part in parts])
    return np.concatenate(parts) if parts else np.zeros(0, np.uint32), offsets


def hold_out_unit(unit: Unit, number: int, folder: Path, settings: SplitSettings) -> Record:
    """The shingles of the validation files of a unit."""
    values, lengths = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
    for batch in unit.batches():
        sound, _, _ = split_sound(batch)
        held = np.flatnonzero(_to_validation(sound, settings))
        if len(held):
            picked = Batch(sound.rows.take(held), sound.origin, 0)
            some, offsets = _sets(picked, np.arange(len(held)))
            values.append(some)
            lengths.append(np.diff(offsets))
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, len(held))
    np.savez(folder / f"{number:05d}.npz", values=np.concatenate(values), lengths=np.concatenate(lengths))
    return {"shingles": int(sum(len(some) for some in values))}


def _index_blocks(counts: list[int]) -> list[list[int]]:
    """The units whose validation shingles share one index."""
    blocks: list[list[int]] = []
    held = _INDEX_SHINGLES
    for unit, count in enumerate(counts):
        if count == 0:
            continue
        if held + count > _INDEX_SHINGLES:
            blocks.append([])
            held = 0
        blocks[-1].append(unit)
        held += count
    return blocks


@dataclass(frozen=True)
class Index:
    """The inverted index of some validation files: sorted shingles, the file of each, and each file's size in shingles.

    The arrays are mapped and not read, so that many blocks cost no memory that others could not have.
    """

    shingle: np.ndarray
    owner: np.ndarray
    sizes: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """What `build_index` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls.__dataclass_fields__))

    def nearest(self, values: np.ndarray, offsets: np.ndarray, similarity: float) -> np.ndarray:
        """Of each set the Jaccard similarity to the file nearest to it; 0 where that is below `similarity`."""
        near = np.zeros(len(offsets) - 1)
        begin = np.searchsorted(self.shingle, values)
        known = np.zeros(len(values), bool)
        inside = begin < len(self.shingle)
        known[inside] = self.shingle[begin[inside]] == values[inside]
        covered = np.diff(np.concatenate([[0], np.cumsum(known)])[offsets])
        for place in np.flatnonzero(covered >= np.maximum(similarity * np.diff(offsets), 1)):
            mine = slice(int(offsets[place]), int(offsets[place + 1]))
            starts = begin[mine][known[mine]]
            ends = np.searchsorted(self.shingle, values[mine][known[mine]], side="right")
            owners = np.concatenate([self.owner[a:b] for a, b in zip(starts, ends, strict=True)])
            common = np.bincount(owners, minlength=len(self.sizes))
            near[place] = np.max(common / (self.sizes + (mine.stop - mine.start) - common))
        return np.where(near >= similarity, near, 0.0)


def build_index(held_out: Path, units: list[int], folder: Path) -> None:
    """Write the index of some units' validation files."""
    values, lengths = [], []
    for unit in units:
        with np.load(held_out / f"{unit:05d}.npz") as arrays:
            values.append(arrays["values"])
            lengths.append(arrays["lengths"])
    sizes = np.concatenate(lengths)
    shingle, owner = np.concatenate(values), np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    order = np.argsort(shingle, kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("shingle", shingle[order]), ("owner", owner[order]), ("sizes", sizes)):
        np.save(folder / f"{name}.npy", array)


def find_twins_unit(unit: Unit, number: int, folder: Path, settings: SplitSettings, blocks: int) -> Record:
    """The rows of a unit's training files that are near-duplicates of a validation file, and how near."""
    indexes = [Index.open(folder / f"index-{block:03d}") for block in range(blocks)]
    rows, similarity = [np.zeros(0, np.int64)], [np.zeros(0)]
    first = 0
    for batch in unit.batches():
        sound, numbers, _ = split_sound(batch)
        training = np.flatnonzero(~_to_validation(sound, settings))
        values, offsets = _sets(sound, training)
        near = np.zeros(len(training))
        for index in indexes:
            near = np.maximum(near, index.nearest(values, offsets, settings.similarity))
        twins = np.flatnonzero(near)
        rows.append(first + numbers[training[twins]])
        similarity.append(near[twins])
        first += batch.rows.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, batch.rows.num_rows - len(twins))
    np.savez(folder / f"{number:05d}.npz", rows=np.concatenate(rows), similarity=np.concatenate(similarity))
    return {}


def divide_unit(unit: Unit, number: int, folder: Path, settings: SplitSettings, twins: Path) -> Record:
    """Write a unit's rows to their side of the split, the twins left out."""
    with np.load(twins / f"{number:05d}.npz") as arrays:
        near = dict(zip(arrays["rows"].tolist(), arrays["similarity"].tolist(), strict=True))
    output = UnitOutput(folder, number, unit.layout.schema, (TRAIN, VALIDATION))
    first = 0
    for batch in unit.batches():
        sound, numbers, dropped = split_sound(batch)
        held = _to_validation(sound, settings)
        twin = np.isin(first + numbers, list(near)) & ~held
        output.keep(sound.rows.filter(held), VALIDATION)
        output.keep(sound.rows.filter(~held & ~twin), TRAIN)
        for place in np.flatnonzero(twin).tolist():
            detail = {"similarity": near[int(first + numbers[place])]}
            dropped.append(Dropped.of(sound, place, "near_validation", detail))
        output.drop(dropped)
        first += batch.rows.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, len(held) - int(twin.sum()))
    return output.close()
