"""Numbers side by side: every run's value of a quantity with its interval, and its difference from the first run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.comparison import compare
from moe_codegen.evaluation.held_out.estimates import LOWER_IS_BETTER, Estimate, differences, estimates
from moe_codegen.evaluation.report.runs import EvaluatedRun
from moe_codegen.evaluation.scores import KS, LanguageScores, score
from moe_codegen.evaluation.syntax import can_parse, parses
from moe_codegen.metrics import Interval, share_difference_interval, share_interval
from moe_codegen.metrics.intervals import FEW_REPOSITORIES, too_few

CORRECTNESS, HELD_OUT = "Programs", "Held-out files"
DIGIT = 0.0005  # half of the last digit shown
PROBLEMS = ("problem", "problems")


@dataclass(frozen=True)
class Cell:
    """A value and its 95% interval; of a difference also what is to be said about it.

    Attributes:
        silent: what is said where there are no bounds.
    """

    value: float
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()
    silent: str = ""

    @property
    def sure(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Row:
    """One quantity.

    Attributes:
        language: of what was measured, or "all".
        detail: what else it is about, such as dataset and k.
        cells: of each run; None where it has not been measured.
        differences: of each run but the first, from the first; None where they cannot be compared.
    """

    language: str
    detail: str
    cells: list[Cell | None]
    differences: list[Cell | None]


@dataclass(frozen=True)
class SideBySide:
    """A table in a section of the report; with `percent` its values are shares of one, shown as such."""

    section: str
    title: str
    caption: str
    rows: list[Row]
    percent: bool
    lower_is_better: bool = False

    @property
    def extent(self) -> tuple[float, float]:
        """The ends of one scale for all intervals, with some room beside them."""
        low, high = _extent([cell for row in self.rows for cell in row.cells])
        room = 0.04 * (high - low) or 0.04
        return low - room, high + room

    @property
    def reach(self) -> float:
        """The greatest distance from zero of all intervals of differences."""
        low, high = _extent([cell for row in self.rows for cell in row.differences])
        return max(abs(low), abs(high)) or 1.0

    @property
    def advice(self) -> str:
        """What to do about intervals that are missing; empty where none is."""
        cells = [cell for row in self.rows for cell in (*row.cells, *row.differences) if cell]
        return FEW_REPOSITORIES if self.section == HELD_OUT and any(cell.low is None for cell in cells) else ""

    def verdict(self, difference: Cell) -> str:
        """Better or worse where the interval says so, equal where no digit shown differs, else open; or silent."""
        if difference.low is None:
            return "silent"
        bounds = (difference.value, difference.low, difference.high)
        if all(bound is not None and abs(bound) < DIGIT for bound in bounds):
            return "equal"
        if not difference.sure:
            return "open"
        return "better" if (difference.value < 0) == self.lower_is_better else "worse"


def pass_at_k_table(runs: Sequence[EvaluatedRun]) -> SideBySide:
    """pass@k over all problems, for each k that all runs have samples for."""
    rows = []
    for name in _names(run.scores for run in runs):
        scores = [run.scores.get(name) for run in runs]
        samples = min(each.samples for each in scores if each)
        for k in (k for k in KS if k <= samples):
            cells = [_over_problems(score(each.tallies, k)) if each else None for each in scores]
            apart = [_compared(scores[0], each, k) for each in scores[1:]]
            rows.append(Row(_language(name), f"{_dataset(name)}, k = {k}", cells, apart))
    return SideBySide(
        CORRECTNESS,
        "pass@k",
        "Share of problems solved within k samples (arXiv 2107.03374, eq. 1), over all problems, with 95% intervals "
        "over problems: the bootstrap's, or Wilson's where each is solved always or never. Differences are paired by "
        "problem; detectable is the smallest that a test at the 5% level would find with a power of 80%.",
        rows,
        percent=True,
    )


def syntax_table(runs: Sequence[EvaluatedRun]) -> SideBySide:
    """The share of generated programs that parse, for languages with a grammar."""
    rows = []
    for name in _names(run.scores for run in runs):
        if can_parse(_language(name)):
            by_run = [_parsed(run, name) if name in run.scores else None for run in runs]
            rows.append(_clustered(_language(name), _dataset(name), by_run))
    return SideBySide(
        CORRECTNESS,
        "Generated programs that parse",
        "Share of the samples whose whole program is well-formed by its tree-sitter grammar, whether or not it is "
        "right; 95% intervals over problems, differences paired by problem.",
        rows,
        percent=True,
    )


def measure_tables(runs: Sequence[EvaluatedRun]) -> list[SideBySide]:
    """Loss, bits per byte, completion and syntax on held-out files."""
    by_measure: dict[str, list[Row]] = {}
    for kind in ("loss", "completion"):
        records = [run.measures.get(kind) for run in runs]
        found = [_by_key(estimates(record)) if record else {} for record in records]
        apart = [_differences(record, records[0]) for record in records[1:]]
        for measure, language in _names(found):
            key = (measure, language)
            cells = [_cell(each.get(key)) for each in found]
            by_measure.setdefault(measure, []).append(
                Row(language, "", cells, [_cell(each.get(key)) for each in apart])
            )
    return [
        SideBySide(
            HELD_OUT,
            measure[0].upper() + measure[1:],
            "95% intervals over repositories, differences paired by file"
            + ("; less is better." if measure in LOWER_IS_BETTER else "."),
            rows,
            percent=measure not in LOWER_IS_BETTER,
            lower_is_better=measure in LOWER_IS_BETTER,
        )
        for measure, rows in by_measure.items()
    ]


def _names(mappings: Iterable[Iterable[Any]]) -> list[Any]:
    """The keys of all, in the order in which they first occur."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _dataset(name: str) -> str:
    return name.partition(" ")[0]


def _language(name: str) -> str:
    return name.partition(" ")[2]


def _over_problems(found: Interval) -> Cell:
    return Cell(found.value, found.low, found.high, silent=too_few(found.clusters, *PROBLEMS))


def _compared(first: LanguageScores | None, other: LanguageScores | None, k: int) -> Cell | None:
    if first is None or other is None or first.tallies.keys() != other.tallies.keys():
        return None
    comparison = compare(first.tallies, other.tallies, k)
    notes = [f"p: {comparison.p_text}, {comparison.test}"]
    if comparison.smallest_detectable is not None:
        notes.append(f"detectable: {100 * comparison.smallest_detectable:.1f}")
    silent = too_few(comparison.problems, *PROBLEMS)
    return Cell(comparison.difference, comparison.low, comparison.high, tuple(notes), silent)


def _parsed(run: EvaluatedRun, name: str) -> dict[str, list[float]]:
    """Problem -> for each sample whether it parses."""
    found: dict[str, list[float]] = {}
    for sample in run.samples(name):
        program = sample.completions.program(sample.completion)
        found.setdefault(sample.completions.name, []).append(float(parses(program, sample.completions.language)))
    return found


def _clustered(language: str, detail: str, by_run: Sequence[dict[str, list[float]] | None]) -> Row:
    """A row of means of problems' means, and their differences."""
    means = [{name: float(np.mean(some)) for name, some in each.items()} if each else None for each in by_run]
    first = means[0]
    apart = [
        {name: each[name] - first[name] for name in each} if first and each and first.keys() == each.keys() else {}
        for each in means[1:]
    ]
    return Row(
        language,
        detail,
        [_mean(each, share_interval) if each else None for each in means],
        [_mean(each, share_difference_interval) if each else None for each in apart],
    )


def _mean(values: Mapping[str, float], of_values: Callable[..., Interval]) -> Cell:
    return _over_problems(of_values(np.array(list(values.values())), list(values)))


def _by_key(found: Sequence[Estimate]) -> dict[tuple[str, str], Estimate]:
    return {(each.measure, each.language): each for each in found}


def _differences(record: Mapping | None, first: Mapping | None) -> dict[tuple[str, str], Estimate]:
    if record is None or first is None:
        return {}
    try:
        return _by_key(differences(record, first))
    except ConfigError:  # measured on other files: shown side by side, and not subtracted
        return {}


def _cell(estimate: Estimate | None) -> Cell | None:
    if estimate is None:
        return None
    return Cell(estimate.value, estimate.low, estimate.high, silent=too_few(estimate.repositories))


def _extent(cells: Sequence[Cell | None]) -> tuple[float, float]:
    bounds = [b for cell in cells if cell for b in (cell.value, cell.low, cell.high) if b is not None]
    return (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
