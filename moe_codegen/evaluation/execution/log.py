"""Outcomes as they come, appended to one file, so that a run that was killed does not judge a program twice."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_codegen.errors import ResultError, ResumeError
from moe_codegen.evaluation.execution.outcome import Outcome


class OutcomeLog:
    """Program -> outcome, kept in `path`: one line that says how programs are judged, then one for each program.

    Args:
        path: of the file, made if it is not there.
        conditions: toolchain and limits; outcomes found under others would not be comparable.

    Raises:
        ResultError: a line of the file is damaged; only the last may be cut short, which is what a kill leaves.
        ResumeError: the file was begun under other conditions.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._path, self._lock = path, threading.Lock()
        begun, self._outcomes, whole = _read(path)
        if begun is not None:
            self._check_same(begun, json.loads(json.dumps(conditions)))
        self._file = path.open("ab")
        if self._file.tell() > whole:
            os.truncate(path, whole)
        if whole == 0:
            self._write({"conditions": conditions})

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._outcomes

    def __getitem__(self, sha256: str) -> Outcome:
        return self._outcomes[sha256]

    def append(self, sha256: str, outcome: Outcome) -> None:
        """Keep an outcome; any thread may call this."""
        with self._lock:
            self._outcomes[sha256] = outcome
            self._write({"sha256": sha256, **vars(outcome)})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_same(self, begun: dict[str, Any], now: dict[str, Any]) -> None:
        if begun != now:
            changed = sorted(key for key in {*begun, *now} if begun.get(key) != now.get(key))
            raise ResumeError(
                f"{self._path} was begun with another {', '.join(changed)} ({begun.get(changed[0])}, now "
                f"{now.get(changed[0])}); outcomes of both would not be comparable: run as it was, or remove the file"
            )

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """Program's sha256 -> outcome of an `outcomes.jsonl`; {} where there is none. For reports: writes nothing."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Outcome], int]:
    """The conditions, if it has begun, the outcomes, and how many bytes of it are whole lines."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    conditions, outcomes = None, {}
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            if number == 1:
                conditions = dict(record["conditions"])
            else:
                sha256 = record.pop("sha256")
                outcomes[sha256] = Outcome.from_record(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResultError(
                f"{path}, line {number}, is damaged ({error!r}); remove the file to begin it again"
            ) from error
    return conditions, outcomes, whole
