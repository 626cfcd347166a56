"""The pictures of the Markdown report. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_codegen.evaluation.report.heat_maps import HeatMap
from moe_codegen.evaluation.report.programs import Failures, order_kinds
from moe_codegen.evaluation.report.tables import SideBySide

COLOURS = ("#3b6fb6", "#d9822b", "#3f9b72", "#a05fb4", "#8a8f98", "#c0504d", "#b59b2f", "#5bb0c4", "#6b5b4b")


def draw_values(table: SideBySide, labels: Sequence[str], path: Path) -> None:
    """Every run's value with its interval, a line for each quantity."""
    figure, axis = _axes(1.1 + 0.32 * len(table.rows) * (1 + 0.5 * len(labels)))
    scale = 100 if table.percent else 1
    for number, label in enumerate(labels):
        heights, values, spreads = [], [], []
        for place, row in enumerate(table.rows):
            cell = row.cells[number]
            if cell is not None:
                low, high = (cell.value if bound is None else bound for bound in (cell.low, cell.high))
                heights.append(place + 0.22 * (number - (len(labels) - 1) / 2))
                values.append(scale * cell.value)
                spreads.append((scale * max(cell.value - low, 0), scale * max(high - cell.value, 0)))
        if values:
            colour = COLOURS[number % len(COLOURS)]
            spread = np.array(spreads).T
            axis.errorbar(values, heights, xerr=spread, fmt="o", color=colour, label=label, capsize=3, markersize=5)
    axis.set_yticks(range(len(table.rows)), [f"{row.language} {row.detail}" for row in table.rows])
    axis.invert_yaxis()
    axis.set_title(table.title, loc="left", fontsize=11)
    axis.set_xlabel("%" if table.percent else table.title)
    axis.grid(axis="x", color="#dddddd")
    axis.legend(loc="best", fontsize=8, frameon=False)
    _save(figure, path)


def draw_failures(found: Sequence[Failures], path: Path) -> None:
    """How programs ended, a bar for each run and language."""
    figure, axis = _axes(1.4 + 0.34 * len(found))
    kinds = order_kinds({kind for each in found for kind in each.counts})
    names = [f"{each.name}, {each.label}" for each in found]
    left = np.zeros(len(found))
    for kind, colour in zip(kinds, COLOURS * len(kinds), strict=False):
        width = np.array([100 * each.counts.get(kind, 0) / each.total for each in found])
        axis.barh(names, width, left=left, color=colour, label=kind)
        left += width
    axis.invert_yaxis()
    axis.set_xlabel("% of the programs")
    axis.set_title("How the programs ended", loc="left", fontsize=11)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    _save(figure, path)


def draw_heat_map(heat_map: HeatMap, label: str, path: Path) -> None:
    """Layers one below the other, a row for each group, a column for each expert."""
    shares = np.array([row for rows in heat_map.layers.values() for row in rows])
    names = [f"layer {layer}  {group}" for layer in heat_map.layers for group in heat_map.groups]
    figure, axis = _axes(1.2 + 0.2 * len(names))
    image = axis.imshow(100 * shares, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_xticks(range(len(heat_map.experts)), heat_map.experts, fontsize=7)
    axis.set_xlabel("expert")
    axis.set_title(f"{label}: {heat_map.title[0].lower()}{heat_map.title[1:]}", loc="left", fontsize=11)
    for edge in range(1, len(heat_map.layers)):
        axis.axhline(edge * len(heat_map.groups) - 0.5, color="white", linewidth=2)
    figure.colorbar(image, label="% of the group's choices")
    _save(figure, path)


def _axes(height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, height), layout="constrained")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    # Without the library's version in it, the same picture is the same file.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
