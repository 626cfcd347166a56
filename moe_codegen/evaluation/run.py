"""Everything of one or several models in one run: programs, held-out files, comparisons, and the report.

OUT/
  {name}/            of each model: its run folder, see `run_folder`
  report.html        beside it report.md and report-figures/
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_codegen.errors import ConfigError, OutputError
from moe_codegen.evaluation.comparison import Comparison, compare
from moe_codegen.evaluation.execution.bench import OnProgress, open_bench
from moe_codegen.evaluation.generate import GenerationReport, generate
from moe_codegen.evaluation.held_out.estimates import Estimate, differences, estimates
from moe_codegen.evaluation.held_out.measures import documents_for, measure
from moe_codegen.evaluation.languages import find_language
from moe_codegen.evaluation.loaded_model import load
from moe_codegen.evaluation.problems import read_problems
from moe_codegen.evaluation.report import write_report
from moe_codegen.evaluation.run_folder import MEASURES, RUN_FILE, check_writable
from moe_codegen.evaluation.scores import LanguageScores, by_dataset, score_folder
from moe_codegen.evaluation.settings import RunSettings
from moe_codegen.generation import check_model

RECORDS = (RUN_FILE, *(f"{name}.json" for name in MEASURES))  # one of which every model's folder has


@dataclass(frozen=True)
class EvaluatedModel:
    """What became of one model.

    Attributes:
        programs: what it wrote, and how that ended.
        scores: pass@k of each language.
        measures: "loss", "completion" and of a mixture "routing" -> what its file holds; none without held-out files.
        comparisons: "dataset language" -> pass@1 beside the first model's; empty for the first.
        differences: of the measures, from the first model's.
    """

    name: str
    programs: GenerationReport
    scores: list[LanguageScores]
    measures: Mapping[str, dict[str, Any]]
    comparisons: Mapping[str, Comparison]
    differences: list[Estimate]

    @property
    def estimates(self) -> list[Estimate]:
        """The measures by language, with their intervals."""
        return [each for record in self.measures.values() for each in estimates(record)]


@dataclass(frozen=True)
class Evaluation:
    """A run that is done: its models, the first being the one that the others are compared with, and its report."""

    models: list[EvaluatedModel]
    report: list[Path]


def run(
    models: Mapping[str, str | Path],
    out: str | Path,
    settings: RunSettings | None = None,
    *,
    on_progress: OnProgress = lambda title, done, total: None,
) -> Evaluation:
    """Evaluate models one after another, each loaded once, and compare the others with the first.

    The same call after a kill goes on where it was; what `generate`, `execute` or `measure` left in `OUT/{name}` is
    taken up.

    Args:
        models: name -> folder or Hub id.
        out: a folder; its files are described above.
        settings: None takes the defaults.
        on_progress: called with what is going on, how much is done, and of how much.

    Raises:
        ConfigError, CheckpointError, ProblemError, SourceError, ToolchainError, SandboxError: before anything is done.
        OutputError, ResumeError: `out` holds results of something else.
    """
    settings, out = settings or RunSettings(), Path(out)
    if not models:
        raise ConfigError("no model to evaluate; give at least one")
    for name in models:
        if name in ("", ".", "..") or "/" in name:
            raise ConfigError(f"{name!r} cannot be a model's name: its results go to a folder so called; give another")
    _check_out(out)
    for source in models.values():
        check_model(source)
    languages = [find_language(name) for name in dict.fromkeys(settings.problems.languages)]
    for language in languages:
        read_problems(settings.problems.dataset, language.name, settings.problems.problems)
    documents = documents_for(settings.held_out, settings.measure) if settings.held_out else None
    done: list[EvaluatedModel] = []
    with open_bench(languages, settings.execution) as bench:
        for name, source in models.items():
            loaded, folder = load(source, settings.model, name), out / name
            programs = generate(
                loaded,
                folder,
                settings.problems,
                settings.sampling,
                settings.model,
                bench=bench,
                on_progress=on_progress,
            )
            measures = {}
            if documents is not None:
                measures = measure(loaded, documents, folder, settings.measure, settings.model, on_progress=on_progress)
            scores = [score_folder(each) for each in programs.folders]
            compared, apart = {}, []
            if done:
                first = done[0]
                one, other = by_dataset(first.scores), by_dataset(scores)
                compared = {dataset: compare(one[dataset].tallies, other[dataset].tallies) for dataset in other}
                apart = [
                    each
                    for kind in measures
                    if kind in first.measures
                    for each in differences(measures[kind], first.measures[kind])
                ]
            done.append(EvaluatedModel(name, programs, scores, measures, compared, apart))
            del loaded  # before the next is loaded
    return Evaluation(done, write_report([out / name for name in models], out / "report.html"))


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot be written, or of something else, such as a model's after which OUT was forgotten."""
    check_writable(out)
    files = (path for path in out.rglob("*") if path.is_file())
    is_started = any((child / name).exists() for child in out.glob("*/") for name in RECORDS)
    if not is_started and any(files):
        raise OutputError(f"{out} holds something else than an evaluation; give a new or empty folder")
