"""Counts of files and bytes, kept or dropped and why, by language."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

KEPT = "kept"
UNKNOWN = "unknown"  # the language of a row that names none
Record = dict[str, Any]  # of a unit or of a whole run, as JSON holds it
Counts = dict[str, dict[str, list[int]]]  # reason -> language -> [files, bytes]


class Tally:
    """Files and bytes for each reason and language; `KEPT` is the reason of what was not dropped."""

    def __init__(self, counts: Counts | None = None) -> None:
        self._counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        if counts:
            self.merge(counts)

    def add(self, reason: str, language: str | None, files: int, nbytes: int) -> None:
        """Count `files` files of `nbytes` bytes in all."""
        entry = self._counts[reason][language or UNKNOWN]
        entry[0] += files
        entry[1] += nbytes

    def merge(self, counts: Counts) -> None:
        """Add the counts of another tally's record."""
        for reason, by_language in counts.items():
            for language, (files, nbytes) in by_language.items():
                self.add(reason, language, files, nbytes)

    def record(self) -> Counts:
        """The counts as JSON holds them, in sorted order."""
        return {
            reason: {language: list(self._counts[reason][language]) for language in sorted(self._counts[reason])}
            for reason in sorted(self._counts)
        }

    def total(self, kept: bool) -> tuple[int, int]:
        """Files and bytes kept, or dropped for any reason."""
        entries = [e for reason, some in self._counts.items() if (reason == KEPT) == kept for e in some.values()]
        return sum(entry[0] for entry in entries), sum(entry[1] for entry in entries)


def merged(records: Iterable[Record]) -> Tally:
    """The sum of the units' tallies."""
    tally = Tally()
    for record in records:
        tally.merge(record["tally"])
    return tally
