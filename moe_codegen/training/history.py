"""A run's history: one JSON object a line, cut back to the checkpoint that a resumed run goes on from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_codegen.metrics import LoadCounts
from moe_codegen.whole_file import write_whole, writing

Line = dict[str, Any]


class History:
    """Appends to `path`; a line has its `step`, numbers by name, and for a mixture `load`, the counts of its experts.

    Lines of an earlier run after step `resumed_at`, which this run goes on from, are dropped.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        kept = [line for line in read_history(path) if line["step"] <= resumed_at]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append(self, line: Line) -> None:
        """Write one line. Raises `OutputError` where the disk is full."""
        advice = "Free some space and run the same command again; it goes on from the last checkpoint"
        with writing(self.path, advice), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[Line]:
    """The lines so far; a last one that a killed run did not finish is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def load_record(counts: LoadCounts) -> Line:
    """Counts as JSON holds them."""
    return {
        "languages": list(counts.groups),
        "layers": list(counts.layers),
        "chosen": counts.chosen_GLE.tolist(),
        "first": counts.first_GLE.tolist(),
    }


def late_load(lines: Sequence[Line], share: float = 0.25) -> LoadCounts | None:
    """The counts of the last `share` of the lines that have any, added up; None for a dense model."""
    loads = [line["load"] for line in lines if "load" in line]
    if not loads:
        return None
    late = loads[-max(1, round(len(loads) * share)) :]
    chosen, first = (sum(np.array(load[name]) for load in late) for name in ("chosen", "first"))
    return LoadCounts(tuple(late[0]["languages"]), tuple(late[0]["layers"]), np.asarray(chosen), np.asarray(first))
