"""A few rows of a source, to try a command on what is large or far away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moe_codegen.data.reading.files import digest
from moe_codegen.data.rows.batch import Batch
from moe_codegen.data.rows.schema import Layout

_UNITS = 16  # that rows are taken from; each of the Hub's costs a second or so to open


@dataclass(frozen=True)
class TrialUnit:
    """The first rows of a unit."""

    unit: Any
    rows: int
    nbytes: int = 0

    @property
    def name(self) -> str:
        """The whole unit's."""
        return self.unit.name

    @property
    def layout(self) -> Layout:
        """The whole unit's."""
        return self.unit.layout

    @property
    def modified(self) -> tuple[int, ...]:
        """The whole unit's."""
        return self.unit.modified

    @property
    def identity(self) -> str:
        """A hash of the whole unit's and of how many rows these are."""
        return digest(self.unit.identity, self.rows)

    def batches(self) -> Iterator[Batch]:
        """The rows; what comes after them is not read."""
        left = self.rows
        for batch in self.unit.batches():
            taken = batch.rows.slice(0, left)
            faults = {row: fault for row, fault in batch.faults.items() if row < taken.num_rows}
            yield replace(batch, rows=taken, faults=faults)
            left -= taken.num_rows
            if not left:
                return


def first_rows(units: Sequence[Any], limit: int) -> list[TrialUnit]:
    """`limit` rows, or fewer, in equal parts from units spread evenly over all."""
    parts = min(len(units), limit, _UNITS)
    places = [part * len(units) // parts for part in range(parts)]
    shares = [limit * (part + 1) // parts - limit * part // parts for part in range(parts)]
    return [TrialUnit(units[place], share) for place, share in zip(places, shares, strict=True)]
