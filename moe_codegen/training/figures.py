"""Pictures of a run, drawn from its history. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_codegen.metrics.routing import expert_shares
from moe_codegen.training.history import Line, late_load

COLUMNS = 4  # panels beside one another
COLOURS = 10  # of lines before they come again


def draw(lines: Sequence[Line], folder: Path, expert_names: Sequence[str] | None = None) -> list[str]:
    """Draw the losses, and of a mixture its load over time and by language, into `folder`; returns the files' names.

    `expert_names` are those of the experts before splitting; None for their numbers.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(exist_ok=True)
    names = ["losses.png"]
    _draw_losses(lines, folder / "losses.png")
    if any("load" in line for line in lines):
        names += ["load.png", "languages.png"]
        _draw_load(lines, folder / "load.png", expert_names)
        _draw_languages(lines, folder / "languages.png", expert_names)
    return names


def _draw_losses(lines: Sequence[Line], path: Path) -> None:
    """Training loss, and validation loss of each language, over tokens."""
    figure, axis = _panels(1, (7.0, 4.0))
    trained = [line for line in lines if "loss" in line]
    tokens_a_step = trained[0]["tokens"] / trained[0]["step"]
    axis[0].plot(
        [line["tokens"] for line in trained],
        [line.get("lm_loss", line["loss"]) for line in trained],
        color="0.7",
        label="training",
    )
    validated = [line for line in lines if "eval_loss_all" in line]
    languages = sorted({name for line in validated for name in line if name.startswith("eval_loss_")})
    for name in languages:
        points = [(tokens_a_step * line["step"], line[name]) for line in validated if name in line]
        is_all = name == "eval_loss_all"
        style: dict[str, Any] = dict(color="black", linewidth=2) if is_all else {}
        axis[0].plot(*zip(*points, strict=True), marker=".", label=name.removeprefix("eval_loss_"), **style)
    axis[0].set_xlabel("tokens")
    axis[0].set_ylabel("loss, nats a token")
    figure.legend(loc="outside right upper", fontsize=8)  # however many languages, beside the lines
    _save(figure, path)


def _draw_load(lines: Sequence[Line], path: Path, expert_names: Sequence[str] | None) -> None:
    """Each expert's share of the choices over tokens, a panel for each layer."""
    counted = [line for line in lines if "load" in line]
    layers = counted[0]["load"]["layers"]
    shares_NLE = expert_shares(np.array([line["load"]["chosen"] for line in counted]).sum(axis=1))
    figure, axes = _panels(len(layers), (3.0, 2.2))
    for place, (axis, layer) in enumerate(zip(axes, layers, strict=False)):
        axis.plot([line["tokens"] for line in counted], shares_NLE[:, place])
        axis.axhline(1 / shares_NLE.shape[-1], color="black", linestyle=":", linewidth=1)
        axis.set_title(f"layer {layer}", fontsize=9)
        axis.set_ylim(0, None)
        axis.tick_params(labelsize=7)
    labels = _labels(shares_NLE.shape[-1], expert_names)
    if len(labels) <= COLOURS:
        figure.legend(axes[0].get_lines()[: len(labels)], labels, loc="outside right upper", fontsize=7, title="expert")
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("share of the choices", fontsize=9)
    _save(figure, path)


def _draw_languages(lines: Sequence[Line], path: Path, expert_names: Sequence[str] | None) -> None:
    """How the tokens of each language were spread over the experts late in the run, a panel for each layer."""
    counts = late_load(lines)
    assert counts is not None
    shares_GLE = expert_shares(counts.chosen_GLE)
    experts = shares_GLE.shape[-1]
    figure, axes = _panels(len(counts.layers), (3.0, 0.8 + 0.35 * len(counts.groups)))
    for place, (axis, layer) in enumerate(zip(axes, counts.layers, strict=False)):
        image = axis.imshow(shares_GLE[:, place], vmin=0, vmax=shares_GLE.max(), cmap="viridis", aspect="auto")
        axis.set_title(f"layer {layer}", fontsize=9)
        axis.set_yticks(range(len(counts.groups)), counts.groups if place % COLUMNS == 0 else [], fontsize=8)
        axis.set_xticks(range(experts), _labels(experts, expert_names), rotation=90 if expert_names else 0)
        axis.tick_params(labelsize=7)
    figure.supxlabel("expert, and its share of the language's choices", fontsize=9)
    figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7)
    _save(figure, path)


def _labels(experts: int, names: Sequence[str] | None) -> list[str]:
    """A label for each expert: the name of the one that it is a piece of, else its number."""
    pieces = experts // len(names) if names else 1
    return [name for name in names or map(str, range(experts)) for _ in range(pieces)]


def _panels(count: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure with `count` panels of `size` inches, and these."""
    import matplotlib.pyplot as plt

    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(size[0] * columns + 1, size[1] * rows + 0.6), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
