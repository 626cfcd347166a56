"""Validation loss of a rival while it learns, over tokens and training FLOPs, and where one curve passes another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.study.models import StudyModels
from benchmarks.study.protocol import LANGUAGES, RIVALS, STABLE
from moe_codegen.training.history import read_history


@dataclass(frozen=True)
class Curve:
    """Validation loss while a rival learns, all languages alike.

    Attributes:
        tokens, flops: spent since the base, the experts' part included.
        losses: nats per token.
        stable: how many of the points were measured at the peak learning rate; the last point is the end.
    """

    tokens: Sequence[float]
    flops: Sequence[float]
    losses: Sequence[float]
    stable: int


def read_curve(models: StudyModels, name: str) -> Curve:
    """The validation losses of a rival's history, each the mean over languages."""
    run = models.summaries[name]
    tokens_before, flops_before = models.spent_on_experts() if RIVALS[name].of_experts else (0.0, 0.0)
    lines = [line for line in read_history(models.path(name) / "history.jsonl") if "eval_loss_all" in line]
    kept = [line for line in lines if line["step"] <= STABLE * run["steps"]]
    points = [(line["step"], [line[f"eval_loss_{language}"] for language in LANGUAGES]) for line in kept]
    points.append((run["steps"], [run["validation"][language]["value"] for language in LANGUAGES]))
    tokens = [step * run["tokens"] / run["steps"] for step, _ in points]
    return Curve(
        tokens=[tokens_before + some for some in tokens],
        flops=[flops_before + some * run["training_flops_per_token"] for some in tokens],
        losses=[sum(losses) / len(losses) for _, losses in points],
        stable=len(kept),
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Of the same rival trained with several seeds: what it spent is the same, its losses are averaged."""
    one = curves[0]
    losses = np.mean([curve.losses for curve in curves], axis=0)
    return Curve(one.tokens, one.flops, losses.tolist(), one.stable)


def crossing(
    x_one: Sequence[float], one: Sequence[float], x_other: Sequence[float], other: Sequence[float]
) -> float | None:
    """From which x on curve `one` stays below curve `other`, both read at the points of `one` that lie on both.

    Returns:
        The first x of the last stretch on which `one` is below, to the end; None where it ends above, or is below at
        its last point alone, which may be chance.
    """
    shared = [(x, loss) for x, loss in zip(x_one, one, strict=True) if x_other[0] <= x <= x_other[-1]]
    below = [x for x, loss in shared if loss < np.interp(x, x_other, other)]
    stretch = [x for place, (x, _) in enumerate(shared) if all(later in below for later, _ in shared[place:])]
    return stretch[0] if len(stretch) > 1 else None
