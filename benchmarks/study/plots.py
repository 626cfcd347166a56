"""The study's pictures: loss over what was spent, differences with their intervals, experts and routing by language.

Dimensions: E experts, G languages.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.study.curves import Curve
from benchmarks.study.estimates import Estimates
from benchmarks.study.findings import UNITS
from benchmarks.study.protocol import BASE, LANGUAGES, LONGEST_DENSE, RIVALS

# The colours that Okabe and Ito chose to be told apart by every eye; half-size experts are dashed.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = "black", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
CURVES = {
    "mixture": (RED, "-"),
    "mixture-anchored": (ORANGE, "-"),
    "mixture-random": (PINK, "-"),
    "mixture-fine": (RED, "--"),
    "upcycled": (BLUE, "-"),
    "upcycled-fine": (BLUE, "--"),
}
GROUPS = {**dict(zip(LANGUAGES, (BLUE, ORANGE, GREEN, PINK), strict=True)), "all": BLACK}


def draw_curves(curves: Mapping[str, Curve], path: Path) -> Path:
    """Validation loss over tokens and over training FLOPs; a dot is an end, after the learning rate has fallen.

    Dense models of one seed are one model until their learning rates fall: one line for all, and a dot for each.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axis, (unit, (scale, _)) in zip(axes, UNITS.items(), strict=True):
        for name, curve in curves.items():
            colour, dashes = CURVES.get(name, (BLACK, "-"))
            x, losses = np.array(getattr(curve, unit)) / scale, np.array(curve.losses)
            if RIVALS[name].is_mixture or name == LONGEST_DENSE:
                label = RIVALS[name].title if RIVALS[name].is_mixture else "dense"
                axis.plot(x[: curve.stable], losses[: curve.stable], dashes, color=colour, linewidth=1.5, label=label)
            axis.plot(x[curve.stable - 1 :], losses[curve.stable - 1 :], ":", color=colour, linewidth=1)
            axis.plot(
                x[-1:], losses[-1:], "o", color=colour, markersize=5, fillstyle="full" if dashes == "-" else "none"
            )
        axis.grid(alpha=0.3)
    axes[0].set_xlabel("tokens since the base, millions (the language experts' included)")
    axes[1].set_xlabel("training FLOPs since the base, 10¹²")
    axes[0].set_ylabel("validation loss, mean of four languages, nats a token")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("line: at the peak learning rate; dotted to the dot: while it falls to zero", fontsize=9)
    return _save(figure, path)


def draw_differences(differences: Mapping[str, Estimates], path: Path) -> Path:
    """Each comparison's paired difference by language, with its interval; left of zero the first model is better."""
    figure, axis = plt.subplots(figsize=(9, 1 + 0.62 * len(differences)), layout="constrained")
    for row, estimates in enumerate(differences.values()):
        for place, (group, colour) in enumerate(GROUPS.items()):
            interval, y = estimates[group].interval, row + 0.15 * (place - 2)
            if interval.low is not None and interval.high is not None:
                axis.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.5)
            axis.plot([interval.value], [y], "o", color=colour, markersize=4, label=group if row == 0 else None)
            seeds = estimates[group].by_seed
            axis.plot(seeds, [y] * len(seeds), "|", color=colour, markersize=5, alpha=0.7)
        if row % 2:
            axis.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    axis.axvline(0, color="gray", linewidth=0.8)
    axis.set_yticks(range(len(differences)), list(differences), fontsize=8)
    axis.set_ylim(len(differences) - 0.5, -0.5)
    axis.set_xlabel(
        "nats a token; line: 95% interval over repositories; ticks: the seeds; left of zero the first is better"
    )
    figure.legend(*axis.get_legend_handles_labels(), fontsize=8, ncols=5, loc="outside upper center", frameon=False)
    axis.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def draw_experts(gains_GE: np.ndarray, shares: Mapping[str, np.ndarray], path: Path) -> Path:
    """What each dense expert gained on each language over the base, and which expert takes which language's tokens.

    `shares` has for each title a (G, E) array of the mixture's choices, the mean over its layers.
    """
    figure, axes = plt.subplots(1, 1 + len(shares), figsize=(3.4 * (1 + len(shares)), 3.2), layout="constrained")
    bound, most = np.abs(gains_GE).max(), max(shares_GE.max() for shares_GE in shares.values())
    _heat(axes[0], gains_GE, "loss of the expert minus the base's", "RdBu_r", -bound, bound)
    axes[0].set_ylabel("test files of")
    for axis, (title, shares_GE) in zip(axes[1:], shares.items(), strict=True):
        _heat(axis, shares_GE, f"share of choices, {title}", "Purples", 0, most)
    return _save(figure, path)


def _heat(axis: Any, values_GE: np.ndarray, title: str, colours: str, low: float, high: float) -> None:
    axis.imshow(values_GE, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for row, column in np.ndindex(*values_GE.shape):
        is_dark = abs(values_GE[row, column]) > 0.6 * high
        text = f"{values_GE[row, column]:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    experts = (*LANGUAGES, BASE)[: values_GE.shape[1]]
    axis.set_xticks(range(len(experts)), experts, rotation=30, fontsize=8)
    axis.set_yticks(range(len(LANGUAGES)), LANGUAGES, fontsize=8)
    axis.set_xlabel("expert")
    axis.set_title(title, fontsize=9)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return path
