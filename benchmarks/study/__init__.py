"""Does a mixture of language experts pay? A small SantaCoder, its experts, their mixture, and the dense rivals.

`protocol.py` says what is compared with what; `benchmarks/results/study.md` tells what was found.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers

from benchmarks.corpus import SKIPPED, find_corpus
from benchmarks.registry import Result, Row, case
from benchmarks.study import findings
from benchmarks.study.data import StudyData
from benchmarks.study.findings import TITLES
from benchmarks.study.measure import Measures
from benchmarks.study.models import BASE, StudyModels
from benchmarks.study.plots import draw_curves, draw_differences, draw_experts
from benchmarks.study.protocol import COMPARISONS, CURVES_COMPARED, LANGUAGES, RIVALS, SCALES
from moe_codegen.metrics import DocumentLosses, Interval, loss_differences, losses_by_language

UNTRAINED = ("joined-random", "joined", "joined-fine")  # copies of the base are the base, but for a little noise
ROUTED = {"joined": "before mixing", "mixture": "after mixing"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of this case."""
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="sizes of model, data and runs [cpu]")
    parser.add_argument("--corpus", type=Path, help="folder of LANGUAGE.parquet files [MOE_CODEGEN_CORPUS]")
    parser.add_argument("--folder", type=Path, default=Path("study"), help="keeps data and models [study]")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; each has models of its own [0]")
    parser.add_argument("--num-proc", type=int, default=2, help="processes that prepare the data [2]")


@case("study", "language experts and their mixture beside dense models at equal tokens and equal FLOPs", add_options)
def run(options: argparse.Namespace) -> Result:
    """Make the models that are not there yet, measure all of them, and say what pays."""
    corpus = options.corpus or find_corpus()
    if corpus is None:
        return Result([], [SKIPPED])
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    scale, folder = SCALES[options.scale], options.folder / options.scale
    data = StudyData(corpus, folder / "data", scale, options.num_proc)
    models = StudyModels(folder / f"seed-{options.seed}", data, scale, options.seed)
    models.make()
    return _result(Measures(models), models, options.out)


def _result(measures: Measures, models: StudyModels, out: Path | None) -> Result:
    losses = {name: measures.losses(name) for name in (BASE, *LANGUAGES, *UNTRAINED, *RIVALS)}
    own = {"own-expert": measures.own_experts()}
    own |= {f"{name}-oracle": measures.oracle(name) for name in ROUTED}
    differences = {f"{one} - {other}": loss_differences(losses[one], losses[other]) for one, other in COMPARISONS}
    routing = {title: measures.routing(name) for name, title in ROUTED.items()}
    curves = {name: models.curve(name) for name in RIVALS}
    rows = [
        *({"model": name, **findings.cost(name, models), **_cells(some)} for name, some in losses.items()),
        *({"model": name, **_cells(some)} for name, some in own.items()),
        *({"model": title, **findings.cells(intervals)} for title, intervals in differences.items()),
    ]
    notes = [
        f"test files: {findings.counted(losses[BASE])}",
        "nats a token and the bounds of its interval (95%, over repositories); the last rows are paired differences",
        *(f"{name}: {title}" for name, title in TITLES.items() if name in (*losses, *own)),
        *(findings.where_it_pays(one, other, curves) for one, other in CURVES_COMPARED),
        *(findings.agreement(title, summary) for title, summary in routing.items()),
        *(findings.distances(title, *measures.expert_distances(name)) for name, title in findings.APART.items()),
    ]
    return Result(rows, notes, _draw(out, curves, losses, differences, routing) if out else [])


def _cells(losses: DocumentLosses) -> Row:
    return findings.cells(losses_by_language(losses))


def _draw(
    out: Path,
    curves: Mapping[str, Any],
    losses: Mapping[str, DocumentLosses],
    differences: Mapping[str, Mapping[str, Interval]],
    routing: Mapping[str, Mapping[str, Any]],
) -> list[Path]:
    """The pictures, and the points of the curves as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    points = out / "study-curves.json"
    points.write_text(json.dumps({name: asdict(curve) for name, curve in curves.items()}) + "\n")
    means = {name: losses_by_language(losses[name]) for name in (BASE, *LANGUAGES)}
    gains_GE = np.array([[means[e][g].value - means[BASE][g].value for e in LANGUAGES] for g in LANGUAGES])
    return [
        draw_curves(curves, out / "study-curves.png"),
        draw_differences(differences, out / "study-differences.png"),
        draw_experts(gains_GE, routing, out / "study-experts.png"),
        points,
    ]
