"""What `moe-codegen evaluate` says: tables for people, records for `--json`."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_codegen.cli import console
from moe_codegen.evaluation import Comparison, GenerationReport, LanguageScores
from moe_codegen.evaluation.execution import Kind
from moe_codegen.metrics import Interval
from moe_codegen.metrics.intervals import FEW_REPOSITORIES
from moe_codegen.reporting import table

if TYPE_CHECKING:  # which need the extra `evaluate`
    from moe_codegen.evaluation.held_out.estimates import Estimate
    from moe_codegen.evaluation.run import EvaluatedModel


def print_scores(scores: Sequence[LanguageScores]) -> None:
    """pass@k of each folder."""
    names = Counter((each.dataset, each.language) for each in scores)
    with_folder = any(count > 1 for count in names.values())  # what else would tell them apart?
    rows = []
    for each in scores:
        for k, score in each.raw.items():
            over = each.passable.get(k)
            rows.append(
                [
                    *([each.folder.name] if with_folder else []),
                    each.dataset,
                    each.language,
                    len(each.tallies),
                    each.samples,
                    k,
                    f"{score.value:.1%}",
                    "-" if score.low is None else f"{score.low:.1%} to {score.high:.1%}",
                    f"{over.value:.1%} of {len(each.tallies) - len(each.unpassable)}" if over else "-",
                ]
            )
    columns = ["dataset", "language", "problems", "samples", "k", "pass@k", "95%", "over passable problems"]
    console.output.print(table(["folder"] * with_folder + columns, rows))


def print_comparisons(comparisons: Mapping[str, Comparison], k: int) -> None:
    """One model beside another, language by language."""
    rows = [
        [
            name,
            each.problems,
            f"{each.a:.1%}",
            f"{each.b:.1%}",
            f"{each.difference:+.1%}",
            "-" if each.low is None or each.high is None else f"{100 * each.low:+.1f}, {each.high:+.1%}",
            each.p_text,
            "-" if each.smallest_detectable is None else f"{each.smallest_detectable:.1%}",
            f"{len(each.wins)} : {len(each.losses)}",
        ]
        for name, each in comparisons.items()
    ]
    # Narrow enough for a terminal of 80 columns.
    columns = ["", "n", "A", "B", "B - A", "95%", "p", "detects", "B : A"]
    console.output.print(table(columns, rows))
    tests = " or ".join(sorted({each.test for each in comparisons.values()}))
    console.messages.print(
        f"A, B: pass@{k} on n problems; p: {tests}; detects: the smallest difference that a test of n problems at the "
        "5% level would find with a power of 80%; B : A: the problems that each solves more often",
        style="dim",
    )


def print_estimates(found: Sequence["Estimate"]) -> None:
    """Measures of held-out files."""
    if not found:
        return
    rows = [(each.measure, each.language, each.text, each.files, each.repositories) for each in found]
    console.output.print(table(("", "language", "mean, 95% interval", "files", "repositories"), rows))
    if any(each.low is None for each in found):
        console.messages.print(FEW_REPOSITORIES, style="dim")


def print_kinds(counts: dict[Path, Counter[Kind]]) -> None:
    """How the programs of each folder ended."""
    kinds = [kind for kind in Kind if any(counter[kind] for counter in counts.values())]
    rows = [[folder.name, *(counter[kind] for kind in kinds)] for folder, counter in counts.items()]
    console.output.print(table(["folder", *kinds], rows))


def print_speed(report: GenerationReport) -> None:
    """Tokens, and tokens per second; nothing where none were written."""
    generation = report.record.generation
    if generation:
        line = f"{generation['tokens']:,} tokens, {generation['tokens_per_second']:.1f} tokens/s"
        console.messages.print(line, style="dim")


def run_record(report: GenerationReport) -> dict[str, Any]:
    """What became of one model: its folders, its run and how programs ended."""
    return {
        "folders": [str(folder) for folder in report.folders],
        "run": dataclasses.asdict(report.record),
        "outcomes": {str(folder): kinds_record(counts) for folder, counts in report.counts.items()},
    }


def model_record(model: "EvaluatedModel") -> dict[str, Any]:
    """The same with its scores, its measures, and what it is beside the first model."""
    return run_record(model.programs) | {
        "scores": [score_record(each) for each in model.scores],
        "estimates": [dataclasses.asdict(each) for each in model.estimates],
        "comparisons": {name: comparison_record(each) for name, each in model.comparisons.items()},
        "differences": [dataclasses.asdict(each) for each in model.differences],
    }


def kinds_record(counts: Counter[Kind]) -> dict[str, int]:
    """Kind of outcome -> how often, in their own order."""
    return {str(kind): counts[kind] for kind in Kind}


def score_record(scores: LanguageScores) -> dict[str, Any]:
    """The scores of one folder."""

    def shares(some: Mapping[int, Interval]) -> dict[str, Any]:
        return {f"pass@{k}": {"value": each.value, "low": each.low, "high": each.high} for k, each in some.items()}

    return {
        "folder": str(scores.folder),
        "dataset": scores.dataset,
        "language": scores.language,
        "problems": len(scores.tallies),
        "samples": scores.samples,
        "raw": shares(scores.raw),
        "passable": shares(scores.passable),
        "unpassable": dict(scores.unpassable),
    }


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """One comparison with what follows from it."""
    computed = {name: getattr(comparison, name) for name in ("difference", "wins", "losses")}
    return dataclasses.asdict(comparison) | computed
