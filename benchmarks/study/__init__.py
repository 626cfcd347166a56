"""Does a mixture of language experts pay? A small SantaCoder, its experts, their mixture, and the dense rivals.

`protocol.py` says what is compared with what; `benchmarks/results/study.md` tells what was found.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import transformers

from benchmarks.corpus import SKIPPED, find_corpus
from benchmarks.registry import Result, Row, case
from benchmarks.study import findings
from benchmarks.study.curves import Curve, mean_curve, read_curve
from benchmarks.study.data import StudyData
from benchmarks.study.estimates import Estimates, estimate, estimate_differences
from benchmarks.study.measure import Measures
from benchmarks.study.models import StudyModels
from benchmarks.study.plots import draw_curves, draw_differences, draw_experts
from benchmarks.study.protocol import BASE, COMPARISONS, LANGUAGES, LONGEST_DENSE, MIXTURES, RIVALS, SCALES

# Copies of the base are the base, but for a little noise: only what is joined of experts is measured untrained.
MODELS = (BASE, *LANGUAGES, *(name for name, mixture in MIXTURES.items() if mixture.of_experts), *RIVALS)
ROUTED = {"joined": "untrained", "mixture": "mixed", "mixture-anchored": "mixed, base too"}
WITH_ORACLE = ("joined", "mixture")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of this case."""
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="sizes of model, data and runs [cpu]")
    parser.add_argument("--corpus", type=Path, help="folder of LANGUAGE.parquet files [MOE_CODEGEN_CORPUS]")
    parser.add_argument("--folder", type=Path, default=Path("study"), help="keeps data and models [study]")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of weights and order; each has models of its own [0]"
    )
    parser.add_argument("--num-proc", type=int, default=2, help="processes that prepare the data [2]")


@case("study", "language experts and their mixture beside dense models at equal tokens and equal FLOPs", add_options)
def run(options: argparse.Namespace) -> Result:
    """Make the models that are not there yet, measure all of them, and say what pays."""
    corpus = options.corpus or find_corpus()
    if corpus is None:
        return Result([], [SKIPPED])
    import datasets  # here, so that the other cases run where it is not installed

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    scale, folder = SCALES[options.scale], options.folder / options.scale
    data = StudyData(corpus, folder / "data", scale, options.num_proc)
    models = [StudyModels(folder / f"seed-{seed}", data, scale, seed) for seed in options.seeds]
    for one in models:
        one.make()
    return _result([Measures(one) for one in models], options.out)


def _result(seeds: Sequence[Measures], out: Path | None) -> Result:
    measured = {name: [seed.losses(name) for seed in seeds] for name in MODELS}
    own = {"own-expert": [seed.own_experts() for seed in seeds]}
    own |= {f"{name}-oracle": [seed.oracle(name) for seed in seeds] for name in WITH_ORACLE}
    losses = {name: estimate(some) for name, some in {**measured, **own}.items()}
    differences = {pair: estimate_differences(measured[pair.one], measured[pair.other]) for pair in COMPARISONS}
    curves = {name: [read_curve(seed.models, name) for seed in seeds] for name in RIVALS}
    routing = {name: [seed.routing(name) for seed in seeds] for name in ROUTED}
    first = seeds[0].models
    rows: list[Row] = [
        {"model": name, **(findings.cost(name, first) if name in MODELS else {}), **_cells(some)}
        for name, some in losses.items()
    ]
    rows += [{"model": pair.title, "equal": pair.equal, **_cells(some)} for pair, some in differences.items()]
    notes = [
        f"test files: {findings.counted(measured[BASE][0])}",
        f"nats a token, mean of {len(seeds)} seeds [95% interval over repositories] ±standard deviation over seeds; "
        "the last rows are paired differences: below zero the first is better",
        *(f"{name}: {findings.TITLES[name]}" for name in losses),
        *(findings.where_it_pays(name, LONGEST_DENSE, curves) for name, rival in RIVALS.items() if rival.is_mixture),
        *(findings.agreement(title, routing[name]) for name, title in ROUTED.items()),
        *(
            findings.distances(title, [seed.expert_distances(name) for seed in seeds])
            for name, title in findings.APART.items()
        ),
    ]
    if out is None:
        return Result(rows, notes)
    gains = {g: {e: losses[e][g].interval.value - losses[BASE][g].interval.value for e in LANGUAGES} for g in LANGUAGES}
    shares = {
        title: np.mean([np.array(one["share_by_group"]).mean(axis=1) for one in routing[name]], axis=0)
        for name, title in ROUTED.items()
    }
    return Result(
        rows,
        notes,
        [
            draw_curves({name: mean_curve(some) for name, some in curves.items()}, out / "study-curves.png"),
            draw_differences({pair.title: some for pair, some in differences.items()}, out / "study-differences.png"),
            draw_experts(np.array([list(row.values()) for row in gains.values()]), shares, out / "study-experts.png"),
            _write_points(curves, losses, out / "study-points.json"),
        ],
    )


def _cells(estimates: Estimates) -> Row:
    return {group: str(one) for group, one in estimates.items()}


def _write_points(curves: Mapping[str, Sequence[Curve]], losses: Mapping[str, Estimates], path: Path) -> Path:
    """The points of every seed's curves, and every model's losses by language and seed."""
    points = {
        "curves": {name: [asdict(curve) for curve in some] for name, some in curves.items()},
        "losses": {name: {group: one.by_seed for group, one in some.items()} for name, some in losses.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(points) + "\n")
    return path
