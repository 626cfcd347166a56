"""A run's history: one JSON object a line, cut back to the checkpoint that a resumed run goes on from."""

import json
from pathlib import Path
from typing import Any

from moe_codegen.metrics import LoadCounts

Line = dict[str, Any]


class History:
    """Appends to `path`; a line has its `step`, numbers by name, and for a mixture `load`, the counts of its experts.

    Attributes:
        resumed_at: the step that the run goes on from; later lines of an earlier run are dropped.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        kept = [line for line in read_history(path) if line["step"] <= resumed_at]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(path)

    def append(self, line: Line) -> None:
        """Write one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[Line]:
    """The lines so far; a last one that a killed run did not finish is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def load_record(counts: LoadCounts) -> Line:
    """Counts as JSON holds them; `load_counts` reads them."""
    return {
        "languages": list(counts.groups),
        "layers": list(counts.layers),
        "chosen": counts.chosen_GLE.tolist(),
        "first": counts.first_GLE.tolist(),
    }
