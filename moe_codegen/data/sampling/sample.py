"""`sample`: as many files of each language as a stated precision needs, spread over its repositories.

Each repository gives its first file before any gives a second one: files of one repository are alike, so a second one
says less. In the mean a file is weighted by how many files its repository has for each one drawn from it.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import UNKNOWN, merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, split_sound
from moe_codegen.data.sampling.repositories import repository_hashes
from moe_codegen.data.sampling.sample_size import (
    cluster_interval,
    intra_correlation,
    mean_errors,
    sample_size,
    variation_of,
)
from moe_codegen.errors import ConfigError
from moe_codegen.languages import canonical_language
from moe_codegen.settings import check_between, check_least, setting


@dataclass(frozen=True)
class SampleSettings:
    """What the sample is to say and how surely. The quantity is the size of a file unless its moments are given."""

    languages: tuple[str, ...] = setting((), "languages to sample; none: all")
    precision: float = setting(0.05, "half-width of the confidence interval, relative to the mean")
    confidence: float = setting(0.95, "confidence level of the interval")
    variation: float | None = setting(None, "standard deviation over mean of the quantity; measured if not given")
    rho: float | None = setting(None, "intra-repository correlation of the quantity; measured if not given")
    files: int | None = setting(None, "files a language, instead of computing it")
    seed: int = setting(0, "which files are drawn")

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "precision", "confidence", open_ended=True)
        check_between(self, 0, 1, "rho")
        check_between(self, 0, math.inf, "variation")
        check_least(self, 1, "files")


def sample(
    source: Source, out: str | Path, settings: SampleSettings | None = None, *, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Write the sample of `source` to `out`; the manifest says for each language how its size came about."""
    return run_stage("sample", source, out, settings or SampleSettings(), _sample, num_proc=num_proc, quiet=quiet)


def _sample(stage: Stage) -> tuple[Record, list[Record]]:
    languages = [record["languages"] for record in stage.map("survey", survey_unit, stage.settings)]
    drawn, sizes = draw(stage.work / "survey", languages, stage.settings)
    if short := [name for name, account in sizes.items() if _is_short(account, stage.settings)]:
        within = ", ".join(f"{name} {_within_elsewhere(sizes[name])}" for name in short)
        asked = f"precision {stage.settings.precision} at confidence {stage.settings.confidence}"
        warnings.warn(
            f"too few files for {asked}, so all are taken; of other repositories they say the mean within: {within}",
            stacklevel=2,
        )
    chosen = stage.work / "chosen"
    chosen.mkdir(exist_ok=True)
    for number, rows in enumerate(drawn):
        np.save(chosen / f"{number:05d}.npy", rows)
    records = stage.map(OUTPUT, choose_unit, chosen)
    return {"tally": merged(records).record(), "samples": sizes}, records


def survey_unit(unit: Unit, number: int, folder: Path, settings: SampleSettings) -> Record:
    """For each file of a unit: row, language, repository, a random order, and the quantity (bytes)."""
    columns: dict[str, list[Any]] = {name: [] for name in ("row", "language", "repo", "order", "size")}
    names: dict[str, int] = {}
    first = 0
    for batch in unit.batches():
        sound, numbers, _ = split_sound(batch)
        columns["repo"] += repository_hashes(sound, settings.seed).tolist()
        fields = (sound.rows.column(name).to_pylist() for name in ("language", "content"))
        for row, language, content in zip(numbers.tolist(), *fields, strict=True):
            columns["row"].append(first + row)
            columns["language"].append(names.setdefault(language or UNKNOWN, len(names)))
            columns["order"].append(xxhash.xxh64_intdigest(content, seed=settings.seed))
            columns["size"].append(len(content))
        first += batch.rows.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, sound.rows.num_rows)
    unsigned = {"repo", "order"}
    arrays: dict[str, Any] = {
        name: np.array(some, np.uint64 if name in unsigned else np.int64) for name, some in columns.items()
    }
    np.savez(folder / f"{number:05d}.npz", **arrays)
    return {"languages": list(names)}


def draw(survey: Path, languages: list[list[str]], settings: SampleSettings) -> tuple[list[np.ndarray], Record]:
    """The rows to take of each unit, sorted, and for each language how many and why."""
    present = {name for names in languages for name in names}
    asked = set(map(canonical_language, settings.languages))
    spelled = sorted(present & asked if asked else present)
    missing = sorted(asked - present)
    if missing:
        raise ConfigError(f"no file in {', '.join(missing)}; found {', '.join(sorted(present))}")
    tables = []
    for number, names in enumerate(languages):
        with np.load(survey / f"{number:05d}.npz") as arrays:
            table = dict(arrays)
        codes = np.array([spelled.index(name) if name in spelled else -1 for name in names] or [-1], np.int64)
        table["language"] = codes[table["language"]] if len(names) else table["language"]
        table["unit"] = np.full(len(table["row"]), number)
        tables.append(table)
    files = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    taken: list[np.ndarray] = []
    sizes: Record = {}
    for code, language in enumerate(spelled):
        mine = np.flatnonzero(files["language"] == code)
        picked, sizes[language] = _draw_language({name: column[mine] for name, column in files.items()}, settings)
        taken.append(mine[picked])
    everything = np.concatenate(taken) if taken else np.zeros(0, np.int64)
    units, rows = files["unit"][everything], files["row"][everything]
    return [np.sort(rows[units == number]) for number in range(len(languages))], sizes


def _draw_language(files: dict[str, np.ndarray], settings: SampleSettings) -> tuple[np.ndarray, Record]:
    """The files of one language that are drawn, and the account of it."""
    values, repos = files["size"].astype(np.float64), files["repo"]
    variation = settings.variation if settings.variation is not None else variation_of(values)
    rho = settings.rho if settings.rho is not None else intra_correlation(values, repos)
    order = _by_rounds(repos, files["order"])
    errors = mean_errors(repos[order], rho)
    size = sample_size(errors, variation, settings.precision, settings.confidence)
    count = min(settings.files, len(values)) if settings.files is not None else size.files
    picked = order[:count]
    account: Record = {
        "population": len(values),
        "repositories": len(np.unique(repos)),
        "variation": variation,
        "rho": rho,
        "unlimited": size.unlimited,
        "finite": size.finite,
        "files": count,
        "files_a_repository": count / max(len(np.unique(repos[picked])), 1),
        "design_effect": errors[count - 1] / (1 / count - 1 / len(values)) if 0 < count < len(values) else 1.0,
    }
    if count:
        said = cluster_interval(values[picked], repos[picked], repos, settings.confidence)
        account |= {"mean": said.mean, "population_mean": float(np.mean(values))}
        for name in ("half_width", "half_width_elsewhere"):
            account[name] = getattr(said, name) if np.isfinite(getattr(said, name)) else None
    return picked, account


def _is_short(account: Record, settings: SampleSettings) -> bool:
    """Whether all files were asked for, and still do not say as surely what others are like."""
    half = account.get("half_width_elsewhere")
    is_unsure = half is None or half > settings.precision * account["mean"]
    return settings.files is None and account["files"] == account["population"] and is_unsure


def _within_elsewhere(account: Record) -> str:
    """The half-width relative to the mean, for repositories that are not among these, as text."""
    half = account.get("half_width_elsewhere")
    return "unknown" if half is None else f"{half / account['mean']:.0%}"


def _by_rounds(repos: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The files in the order in which they are taken: a random one of every repository, then a second one of each.

    In a round repositories follow their hashes: in the order of the files large ones would come first.
    """
    by_repo = np.lexsort((order, repos))
    begins = np.searchsorted(repos[by_repo], repos[by_repo])
    turn = np.arange(len(repos)) - begins
    return by_repo[np.lexsort((repos[by_repo], turn))]


def choose_unit(unit: Unit, number: int, folder: Path, chosen: Path) -> Record:
    """Write the chosen rows of a unit."""
    wanted = np.load(chosen / f"{number:05d}.npy")
    output = UnitOutput(folder, number, unit.layout.schema)
    first = 0
    for batch in unit.batches():
        sound, numbers, dropped = split_sound(batch)
        taken = np.isin(first + numbers, wanted)
        kept = sound.rows.filter(taken)
        output.keep(kept)
        left = np.flatnonzero(~taken).tolist()
        output.drop([*dropped, *Dropped.of(sound, dict.fromkeys(left, "not_sampled"))])
        first += batch.rows.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, kept.num_rows)
    return output.close()
