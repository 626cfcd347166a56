"""The report's pictures. Needs matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np

from moe_codegen.data.filtering.filters import BOUNDS
from moe_codegen.data.filtering.histograms import BINS
from moe_codegen.data.passes.stage import Record
from moe_codegen.data.passes.tally import KEPT

_UNITS = {"size": " (bytes)", "avg_line_length": " (characters)", "max_line_length": " (characters)"}


def draw(stages: list[Record], out: Path) -> list[list[str]]:
    """Draw what the stages have to show into `out`; returns the names of the files, stage by stage."""
    import matplotlib

    matplotlib.use("Agg")
    drawn: list[list[str]] = []
    for number, stage in enumerate(stages, 1):
        drawn.append([])
        for kind, key, draw_one in (
            ("dropped", "tally", _draw_tally),
            ("histograms", "histograms", _draw_histograms),
            ("clusters", "cluster_sizes", _draw_clusters),
            ("samples", "samples", _draw_samples),
        ):
            if stage.get(key):
                drawn[-1].append(f"report-{number:02d}-{stage['verb']}-{kind}.png")
                draw_one(stage, out / drawn[-1][-1])
    return drawn


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_tally(stage: Record, path: Path) -> None:
    """Files and bytes of each language, kept and dropped, one bar each."""
    import matplotlib.pyplot as plt

    counts = stage["tally"]
    languages = sorted({language for some in counts.values() for language in some})
    reasons = [KEPT, *sorted(reason for reason in counts if reason != KEPT)]
    figure, axes = plt.subplots(1, 2, figsize=(11, 1.6 + 0.4 * len(languages)), sharey=True)
    colors = plt.colormaps["tab20"](np.arange(len(reasons)) % 20)
    for place, (axis, title, scale) in enumerate(zip(axes, ("files", "MB"), (1, 1e6), strict=True)):
        left = np.zeros(len(languages))
        for reason, color in zip(reasons, colors, strict=True):
            width = np.array([counts.get(reason, {}).get(name, (0, 0))[place] / scale for name in languages])
            axis.barh(languages, width, left=left, color=color, label=reason.replace("_", " "))
            left += width
        axis.set_xlim(0, 1.05 * max(left) or 1)
        axis.set_xlabel(title)
    axes[0].invert_yaxis()  # from the top in the order of the tables; the other axis goes with it
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=7)
    _save(figure, path)


def _draw_histograms(stage: Record, path: Path) -> None:
    """The distribution of each measure before filtering, with the thresholds as lines."""
    import matplotlib.pyplot as plt

    thresholds: dict[str, list[float]] = {name: [] for name in BINS}
    for name, low, high in BOUNDS.values():
        if name in thresholds:
            thresholds[name] += [stage["settings"][key] for key in (low, high) if key in stage["settings"]]
    if "max_size" in stage["settings"]:
        thresholds["size"].append(stage["settings"]["max_size"])
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.5))
    for axis in axes.flat[len(BINS) :]:
        axis.axis("off")
    for axis, (name, edges) in zip(axes.flat, BINS.items(), strict=False):
        axis.stairs(stage["histograms"][name], edges, fill=True, alpha=0.7)
        axis.set_yscale("symlog")
        axis.set_xscale("log" if edges[-1] > 1 else "linear")
        axis.set_xlabel(name.replace("_", " ") + _UNITS.get(name, ""))
        axis.set_ylabel("files")
        for value in thresholds[name]:
            axis.axvline(value, color="tab:red", linestyle="--", linewidth=1)
    _save(figure, path)


def _draw_clusters(stage: Record, path: Path) -> None:
    """How many clusters of duplicates there are of each size."""
    import matplotlib.pyplot as plt

    sizes = sorted((int(size), count) for size, count in stage["cluster_sizes"].items())
    figure, axis = plt.subplots(figsize=(5, 3))
    axis.loglog(*zip(*sizes, strict=True), "o")
    axis.set_xscale("log", base=2)
    axis.set_xlim(0.8, 1.25 * sizes[-1][0])
    axis.set_ylim(bottom=0.7)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("files in the cluster")
    axis.set_ylabel("clusters")
    _save(figure, path)


def _draw_samples(stage: Record, path: Path) -> None:
    """The sampled mean of each language with its interval, beside the mean of all its files."""
    import matplotlib.pyplot as plt

    samples = {name: account for name, account in stage["samples"].items() if "mean" in account}
    figure, axis = plt.subplots(figsize=(6, 1.6 + 0.4 * len(samples)))
    means = [account["mean"] for account in samples.values()]
    widths = [account["half_width"] or 0 for account in samples.values()]
    axis.errorbar(means, list(samples), xerr=widths, fmt="o", capsize=4, label="sample")
    axis.plot(
        [account["population_mean"] for account in samples.values()], list(samples), "k|", ms=14, label="all files"
    )
    axis.set_ylim(len(samples) - 0.5, -0.5)  # from the top in the order of the tables
    axis.set_xlabel("mean bytes a file")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    _save(figure, path)
