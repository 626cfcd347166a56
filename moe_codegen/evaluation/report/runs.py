"""What a report reads: the folders that `evaluate run` and `evaluate measure` wrote."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_codegen.errors import ResultError
from moe_codegen.evaluation.execution.log import read_outcomes
from moe_codegen.evaluation.execution.outcome import submissions_of
from moe_codegen.evaluation.multipl_e import (
    Completions,
    completion_files,
    read_completions,
    read_results,
    result_files,
)
from moe_codegen.evaluation.run_folder import MEASURES, OUTCOMES_FILE, RunRecord, read_measure, read_record
from moe_codegen.evaluation.scores import LanguageScores, by_dataset, score_folder
from moe_codegen.reporting import format_count

PASSED = "Passed"
_TOLD = ("settings", "documents", "seconds", "versions")


@dataclass(frozen=True)
class Sample:
    """One program: its problem's completions, its number among them, and how it ended."""

    completions: Completions
    number: int
    kind: str

    @property
    def completion(self) -> str:
        """What the model wrote."""
        return self.completions.completions[self.number]

    @property
    def passed(self) -> bool:
        """Whether its tests passed."""
        return self.kind == PASSED


@dataclass(frozen=True)
class EvaluatedRun:
    """A model and everything that a folder says of it.

    Attributes:
        label: the model's name, unique in the report.
        run: `run.json`, where there is one.
        scores: "dataset language" -> pass@k.
        measures: those of `MEASURES` that there are.
    """

    folder: Path
    label: str
    model: Mapping[str, Any]
    run: RunRecord | None
    scores: Mapping[str, LanguageScores]
    measures: Mapping[str, Mapping[str, Any]]

    def parameters(self, which: str) -> str:
        """How many parameters are "total" or "active", as a person reads it."""
        count = self.model.get("parameters", {}).get(which)
        return "unknown" if count is None else format_count(count)

    @property
    def generated_per_second(self) -> str:
        """Tokens of programs written per second."""
        return _pace(self.run.generation if self.run else {})

    @property
    def scored_per_second(self) -> str:
        """Tokens of held-out files whose loss was computed per second."""
        return _pace(self.measures.get("loss", {}))

    @property
    def records(self) -> dict[str, Mapping[str, Any]]:
        """Title -> everything that the results depend on."""
        told: dict[str, Mapping[str, Any]] = {"Model": self.model}
        if self.run:
            problems = {
                folder: {key: value for key, value in each.items() if key != "names"}
                for folder, each in self.run.problems.items()
            }
            told |= {"Problems": problems, "Sampling": self.run.settings, "Execution": self.run.execution}
            told |= {"Generation": self.run.generation, "Versions": self.run.versions}
        for name, record in self.measures.items():
            told[f"Held-out files, {name}"] = {key: record[key] for key in _TOLD}
        return {title: record for title, record in told.items() if record}

    def samples(self, name: str) -> Iterator[Sample]:
        """The programs of one of the `scores`, problem by problem."""
        folder = self.scores[name].folder
        outcomes = read_outcomes(folder / OUTCOMES_FILE)
        results = result_files(folder)
        for problem, path in completion_files(folder).items():
            completions = read_completions(path)
            statuses = [PASSED if each.passed else each.status for each in read_results(results[problem]).results]
            for number, submission in enumerate(submissions_of(completions)):
                outcome = outcomes.get(submission.sha256)
                # Results made elsewhere come without outcomes, and tell failures apart in MultiPL-E's words alone.
                yield Sample(completions, number, str(outcome.kind) if outcome else statuses[number])


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """The runs in the order given.

    Raises:
        ResultError: a folder that holds nothing to report, or something damaged or incomplete; or one given twice.
    """
    twice = next((folder for folder, count in Counter(map(Path.resolve, folders)).items() if count > 1), None)
    if twice is not None:
        raise ResultError(f"{twice} is given twice; a report sets different runs side by side")
    runs = [_read(folder) for folder in folders]
    return [replace(run, label=_label(run, runs)) for run in runs]


def _label(run: EvaluatedRun, runs: Sequence[EvaluatedRun]) -> str:
    """The model's name; where others have it too, with the folder's name or else the whole path."""
    namesakes = [other.folder for other in runs if other is not run and other.label == run.label]
    if not namesakes:
        return run.label
    is_told_apart = all(folder.name != run.folder.name for folder in namesakes)
    return f"{run.label} ({run.folder.name if is_told_apart else run.folder})"


def _pace(record: Mapping[str, Any]) -> str:
    pace = record.get("tokens_per_second")
    return "not measured" if pace is None else f"{pace:,.0f}" if pace >= 100 else f"{pace:.1f}"


def _read(folder: Path) -> EvaluatedRun:
    run = read_record(folder) if folder.is_dir() else None
    measures = {name: found for name in MEASURES if (found := read_measure(folder, name)) is not None}
    children = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    scored = [score_folder(child) for child in children if child.is_dir() and result_files(child)]
    if not (scored or measures):
        raise ResultError(
            f"{folder} holds no results of a model; give OUT/NAME of `moe-codegen evaluate run`, or OUT of "
            "`moe-codegen evaluate execute` or `moe-codegen evaluate measure`"
        )
    models = [*([run.model] if run else []), *(record["model"] for record in measures.values())]
    model = models[0] if models else {"name": folder.name}
    if any(other.get("files") != model.get("files") for other in models):
        raise ResultError(f"{folder} holds results of two different models; keep each in a folder of its own")
    return EvaluatedRun(folder, model["name"], model, run, by_dataset(scored), measures)
