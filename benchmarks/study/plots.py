"""The study's pictures: loss over what was spent, differences with their intervals, experts and routing by language."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.study.protocol import LANGUAGES, RIVALS, Curve
from moe_codegen.metrics import Interval

COLOURS = {
    "dense": "black",
    "dense-flops": "dimgray",
    "mixture": "tab:red",
    "mixture-fine": "tab:orange",
    "upcycled-fine": "tab:blue",
}


def draw_curves(curves: Mapping[str, Curve], path: Path) -> Path:
    """Validation loss over tokens and over training FLOPs; the dot is the end, after the learning rate has fallen."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, unit, scale in ((axes[0], "tokens", 1e6), (axes[1], "flops", 1e12)):
        for name, curve in curves.items():
            x = np.array(getattr(curve, unit)) / scale
            style = dict(color=COLOURS[name], linewidth=1.4)
            axis.plot(x[: curve.stable], curve.losses[: curve.stable], **style, label=RIVALS[name].title)
            axis.plot(x[curve.stable - 1 :], curve.losses[curve.stable - 1 :], **style, linestyle=":")
            axis.plot(x[-1:], curve.losses[-1:], marker="o", markersize=5, color=COLOURS[name])
        axis.grid(alpha=0.3)
    axes[0].set_xlabel("tokens since the base, millions (the language experts' included)")
    axes[1].set_xlabel("training FLOPs since the base, 10¹²")
    axes[0].set_ylabel("validation loss, mean of four languages, nats a token")
    axes[1].legend(fontsize=8)
    figure.suptitle("line: at the peak learning rate; dotted to the dot: while it falls to zero", fontsize=9)
    return _save(figure, path)


def draw_differences(differences: Mapping[str, Mapping[str, Interval]], path: Path) -> Path:
    """Each comparison's paired difference by language, with its interval; left of zero the first model is better."""
    groups = [*LANGUAGES, "all"]
    figure, axis = plt.subplots(figsize=(9, 1 + 0.62 * len(differences)), layout="constrained")
    colours = [*plt.colormaps["tab10"](range(len(LANGUAGES))), "black"]
    for row, intervals in enumerate(differences.values()):
        for place, (group, colour) in enumerate(zip(groups, colours, strict=True)):
            interval, y = intervals[group], row + 0.14 * (place - 2)
            if interval.low is not None and interval.high is not None:
                axis.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.5)
            filled = colour if interval.low is not None else "white"  # hollow: a value without an interval
            label = group if row == 0 else None
            axis.plot([interval.value], [y], "o", color=colour, markerfacecolor=filled, markersize=4, label=label)
    axis.axvline(0, color="gray", linewidth=0.8)
    axis.set_yticks(range(len(differences)), list(differences), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(
        "nats a token, 95% intervals (hollow: too few repositories for one); below zero the first is better"
    )
    axis.legend(fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.3, 1.0))
    axis.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def draw_experts(gains_GE: np.ndarray, routing: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """What each dense expert gained on each language over the base, and which expert takes which language's tokens."""
    shares = {title: np.array(summary["share_by_group"]).mean(axis=1) for title, summary in routing.items()}
    figure, axes = plt.subplots(1, 1 + len(shares), figsize=(3.6 * (1 + len(shares)), 3.4), layout="constrained")
    bound, most = np.abs(gains_GE).max(), max(shares_GE.max() for shares_GE in shares.values())
    _heat(axes[0], gains_GE, "loss of the dense expert minus the base's", "RdBu_r", -bound, bound)
    axes[0].set_ylabel("test files of")
    for axis, (title, shares_GE) in zip(axes[1:], shares.items(), strict=True):
        _heat(axis, shares_GE, f"share of the choices, {title}", "Purples", 0, most)
    return _save(figure, path)


def _heat(axis: Any, values_GE: np.ndarray, title: str, colours: str, low: float, high: float) -> None:
    axis.imshow(values_GE, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for row, column in np.ndindex(*values_GE.shape):
        is_dark = abs(values_GE[row, column]) > 0.6 * high
        text = f"{values_GE[row, column]:.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    axis.set_xticks(range(len(LANGUAGES)), LANGUAGES, rotation=30, fontsize=8)
    axis.set_yticks(range(len(LANGUAGES)), LANGUAGES, fontsize=8)
    axis.set_xlabel("expert")
    axis.set_title(title, fontsize=9)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return path
