"""What single programs show: how they failed, and where one model solves what the other does not."""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from moe_codegen.evaluation.comparison import compare
from moe_codegen.evaluation.execution import Kind
from moe_codegen.evaluation.report.runs import EvaluatedRun, Sample

SHOWN = 8  # problems of each sort and language
_KINDS = [str(kind) for kind in Kind]


@dataclass(frozen=True)
class Failures:
    """How the programs of a run ended in one language, kind -> how many."""

    name: str
    label: str
    counts: dict[str, int]

    @property
    def total(self) -> int:
        """Programs in all."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Line:
    """A line of a diff: of the first program ("-"), of the second ("+") or of both (" ")."""

    sign: Literal["-", "+", " "]
    text: str


@dataclass(frozen=True)
class Decided:
    """A problem that one of two models solves more often.

    Attributes:
        problem: its name.
        first, second: samples that passed of those there are, of each.
        kinds: how the two programs shown ended.
        prompt: what both were to continue.
        diff: from the first's program to the second's: of the winner one that passed, of the other one that failed.
    """

    problem: str
    first: tuple[int, int]
    second: tuple[int, int]
    kinds: tuple[str, str]
    prompt: str
    diff: list[Line]


@dataclass(frozen=True)
class WinsAndLosses:
    """All problems of a language that two models solve unequally often; `wins` are the second's, the clearest first.

    Only the first `SHOWN` of each come with their programs; `num_wins` and `num_losses` count all.
    """

    name: str
    first: str
    second: str
    wins: list[Decided]
    losses: list[Decided]
    num_wins: int
    num_losses: int

    @property
    def is_tie(self) -> bool:
        """Whether both solve every problem equally often."""
        return not (self.num_wins or self.num_losses)


def failures(runs: Sequence[EvaluatedRun]) -> list[Failures]:
    """How programs ended, language by language and there run by run; kinds that nowhere occur are left out."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        for run in runs:
            if name in run.scores:
                counts = Counter(sample.kind for sample in run.samples(name))
                found.append(Failures(name, run.label, {kind: counts[kind] for kind in order_kinds(counts)}))
    return found


def order_kinds(kinds: Iterable[str]) -> list[str]:
    """Our kinds in their own order, passed first; then MultiPL-E's words that are none of ours."""
    return sorted(kinds, key=lambda kind: (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), kind))


def wins_and_losses(first: EvaluatedRun, second: EvaluatedRun) -> list[WinsAndLosses]:
    """For each language of which both have the same problems."""
    found = []
    for name in first.scores:
        a, b = first.scores[name].tallies, second.scores[name].tallies if name in second.scores else {}
        if a.keys() != b.keys():
            continue
        comparison = compare(a, b)
        shown = {*comparison.wins[:SHOWN], *comparison.losses[:SHOWN]}
        ours, theirs = (_by_problem(run, name, shown) for run in (first, second))
        decided = {problem: _decided(problem, ours[problem], theirs[problem]) for problem in sorted(shown)}
        found.append(
            WinsAndLosses(
                name,
                first.label,
                second.label,
                [decided[problem] for problem in comparison.wins[:SHOWN]],
                [decided[problem] for problem in comparison.losses[:SHOWN]],
                len(comparison.wins),
                len(comparison.losses),
            )
        )
    return found


def _by_problem(run: EvaluatedRun, name: str, problems: set[str]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in run.samples(name):
        if sample.completions.name in problems:
            found.setdefault(sample.completions.name, []).append(sample)
    return found


def _decided(problem: str, first: Sequence[Sample], second: Sequence[Sample]) -> Decided:
    passed = [sum(sample.passed for sample in samples) for samples in (first, second)]
    second_won = passed[1] / len(second) > passed[0] / len(first)
    one, other = _pick(first, not second_won), _pick(second, second_won)
    return Decided(
        problem,
        (passed[0], len(first)),
        (passed[1], len(second)),
        (one.kind, other.kind),
        one.completions.prompt,
        diff(one.completion, other.completion),
    )


def _pick(samples: Sequence[Sample], passed: bool) -> Sample:
    return next((sample for sample in samples if sample.passed == passed), samples[0])


def diff(first: str, second: str) -> list[Line]:
    """The lines of both, those of the first alone before those of the second alone."""
    lines: list[Line] = []
    a, b = first.rstrip().split("\n"), second.rstrip().split("\n")
    for tag, a_start, a_end, b_start, b_end in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [Line(" ", text) for text in a[a_start:a_end]]
        else:
            lines += [Line("-", text) for text in a[a_start:a_end]]
            lines += [Line("+", text) for text in b[b_start:b_end]]
    return lines
