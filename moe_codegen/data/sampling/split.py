"""`split`: training and validation by repository, and no near-duplicate of a validation file in training.

The search for near-duplicates across the split is exact, not by bands, which would miss some. Three passes, each
parallel: `survey_unit` lists the repositories, of which one process chooses; `hold_out_unit` collects the shingles of
the validation files, of which it builds an index; `divide_unit` writes both sides and drops from training what the
index finds.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from moe_codegen.data.deduplication.shingles import shingles
from moe_codegen.data.passes.output import UnitOutput, part_name
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import KEPT, UNKNOWN, merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, split_sound
from moe_codegen.data.sampling.held_out import HeldOutIndex, build_index
from moe_codegen.data.sampling.repositories import are_in, held_out_repositories, repository_hashes
from moe_codegen.settings import check_between, setting

TRAIN, VALIDATION = "train", "validation"


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
    names = [record["languages"] for record in stage.map("survey", survey_unit, stage.settings)]
    chosen = stage.work / "chosen.npy"
    np.save(chosen, _choose(stage.work / "survey", names, stage.settings))
    held_out = stage.map("held_out", hold_out_unit, stage.settings, chosen)
    parts = [_part(stage.work / "held_out", number) for number in range(len(held_out))]
    build_index(parts, [record["shingles"] for record in held_out], stage.work / "index")
    records = stage.map(OUTPUT, divide_unit, stage.settings, chosen, stage.work / "index")
    tally = merged(records).record()
    if missing := sorted(set(tally.get(KEPT, {})).difference(*(record["languages"] for record in held_out))):
        warnings.warn(
            f"no file of {', '.join(missing)} went to validation: training cannot spare the repository that has any",
            stacklevel=2,
        )
    rows = {
        into: sum(s["rows"] for r in records for s in r["shards"] if s["name"].startswith(into))
        for into in (TRAIN, VALIDATION)
    }
    return {"tally": tally, "split_rows": rows}, records


def survey_unit(unit: Unit, number: int, folder: Path, settings: SplitSettings) -> Record:
    """The repositories of a unit, each with each of its languages."""
    names: dict[str, int] = {}
    pairs: set[tuple[int, int]] = set()
    for batch in unit.batches():
        sound, _, _ = split_sound(batch)
        repos = repository_hashes(sound, settings.seed).tolist()
        languages = [
            names.setdefault(name or UNKNOWN, len(names)) for name in sound.rows.column("language").to_pylist()
        ]
        pairs.update(zip(repos, languages, strict=True))
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, sound.rows.num_rows)
    columns = np.array(sorted(pairs), np.uint64).reshape(-1, 2)
    np.savez(_part(folder, number), repos=columns[:, 0], languages=columns[:, 1])
    return {"languages": list(names)}


def _choose(survey: Path, names: list[list[str]], settings: SplitSettings) -> np.ndarray:
    """The repositories that go to validation, of those of all units."""
    spelled = sorted({name for some in names for name in some})
    pairs = [np.zeros((2, 0), np.uint64)]
    for number, some in enumerate(names):
        with np.load(_part(survey, number)) as arrays:
            codes = np.array([spelled.index(name) for name in some], np.uint64)
            pairs.append(np.stack([arrays["repos"], codes[arrays["languages"]]]))
    repos, languages = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return held_out_repositories(repos, languages, settings.validation)


def _sets(content: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of each file and their offsets; a file of too few words is one shingle, its own hash."""
    made = shingles(content)
    sizes = np.diff(made.offsets)
    wordless = np.flatnonzero(sizes == 0)
    hashes = [xxhash.xxh32_intdigest(content[row].as_py()) for row in wordless.tolist()]
    values = np.insert(made.hashes_G, made.offsets[wordless], np.array(hashes, np.uint32))
    return values, np.concatenate([[0], np.cumsum(np.maximum(sizes, 1))])


def hold_out_unit(unit: Unit, number: int, folder: Path, settings: SplitSettings, chosen_path: Path) -> Record:
    """The shingles of the validation files of a unit, and their languages."""
    repositories = np.load(chosen_path, mmap_mode="r")
    values, sizes = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
    languages: set[str] = set()
    for batch in unit.batches():
        sound, _, _ = split_sound(batch)
        held = are_in(repository_hashes(sound, settings.seed), repositories)
        if held.any():
            files = sound.rows.filter(pa.array(held))
            some, offsets = _sets(files.column("content"))
            values.append(some)
            sizes.append(np.diff(offsets))
            languages.update(name or UNKNOWN for name in files.column("language").to_pylist())
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, int(held.sum()))
    joined = np.concatenate(values)
    np.savez(_part(folder, number), values=joined, sizes=np.concatenate(sizes))
    return {"shingles": len(joined), "languages": sorted(languages)}


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def divide_unit(
    unit: Unit, number: int, folder: Path, settings: SplitSettings, chosen_path: Path, index_folder: Path
) -> Record:
    """Write a unit's rows to their side of the split, without the training files that are like a validation file."""
    repositories = np.load(chosen_path, mmap_mode="r")
    index = HeldOutIndex.open(index_folder)
    sides = {side: f"{side}/{part_name(number)}" for side in (TRAIN, VALIDATION)}
    output = UnitOutput(folder, number, unit.layout.schema, sides)
    for batch in unit.batches():
        sound, _, dropped = split_sound(batch)
        held = are_in(repository_hashes(sound, settings.seed), repositories)
        near = np.zeros(len(held))
        near[~held] = index.nearest(*_sets(sound.rows.column("content").filter(pa.array(~held))), settings.similarity)
        output.keep(sound.rows.filter(pa.array(held)), VALIDATION)
        output.keep(sound.rows.filter(pa.array(~held & (near == 0))), TRAIN)
        details = {row: {"similarity": float(near[row])} for row in np.flatnonzero(near).tolist()}
        output.drop([*dropped, *Dropped.of(sound, dict.fromkeys(details, "near_validation"), details)])
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, int(np.sum(near == 0)))
    return output.close()
