"""Distributions of what the filters measure, in fixed bins, so that the parts of a source add up."""

from typing import Any

import numpy as np

from moe_codegen.data.filtering.measures import Measures

_LENGTHS = np.unique(np.round(np.geomspace(1, 1 << 20, 81)))
_FRACTIONS = np.linspace(0.0, 1.0, 51)
BINS = {
    "size": _LENGTHS,
    "lines": _LENGTHS,
    "avg_line_length": _LENGTHS,
    "max_line_length": _LENGTHS,
    "alphanum_fraction": _FRACTIONS,
    "comment_fraction": _FRACTIONS,
    "encoded_fraction": _FRACTIONS,
}


class Histograms:
    """Files in each bin of each measure; what lies outside of the bins is counted in the nearest."""

    def __init__(self) -> None:
        self._counts = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in BINS.items()}

    def add(self, measures: Measures) -> None:
        """Count the files of a batch; values that are not a number are left out."""
        for name, edges in BINS.items():
            values = np.asarray(getattr(measures, name), np.float64)
            inside = np.clip(values[~np.isnan(values)], edges[0], edges[-1])
            self._counts[name] += np.histogram(inside, edges)[0]

    def merge(self, record: dict[str, list[int]]) -> None:
        """Add the counts of another's record."""
        for name, counts in record.items():
            self._counts[name] += np.array(counts)

    def record(self) -> dict[str, Any]:
        """The counts as JSON holds them."""
        return {name: counts.tolist() for name, counts in self._counts.items()}
