"""A folder that appears whole or not at all, and whose making can be interrupted and taken up again."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint.reader import read_json
from moe_codegen.errors import OutputError, ResumeError

JOURNAL = "journal.json"


class StagedFolder:
    """Builds `out` as `<out>.partial` beside it and renames it when it is whole.

    A journal in the staged folder lists the files that are complete, and the fingerprint of what is being made. A
    second run with the same fingerprint goes on where the first one stopped; with another it is refused.

    Attributes:
        path: the staged folder.
        done: file -> {"bytes", "sha256"} of the files already complete.

    Raises:
        OutputError: `out` exists and is not empty, cannot be created, or is being made by another process.
        ResumeError: a staged folder is there and was started from something else.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any]) -> None:
        check_target(out)
        self.out = out
        self.path = staged_path(out)
        with _refusals(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{self.path} is being written by another process; wait for it to end") from None
        # Compared as JSON, which is what the journal gives back.
        self.fingerprint = json.loads(json.dumps(fingerprint))
        journal = self.path / JOURNAL
        if journal.exists():
            started = read_json(journal)
            self._check_same(started["fingerprint"])
            self.done: dict[str, dict[str, Any]] = started["done"]
        else:
            self.done = {}
            self._write_journal()

    def record(self, file: str, sha256: str) -> None:
        """Note that `file` is complete and on the disk."""
        self.done[file] = {"bytes": (self.path / file).stat().st_size, "sha256": sha256}
        self._write_journal()

    def finish(self) -> None:
        """Give the folder its name. From here on it is whole."""
        (self.path / JOURNAL).unlink()
        (self.path / ".lock").unlink()
        for file in self.path.iterdir():
            _sync(file)
        _sync(self.path)
        self.path.replace(self.out)
        _sync(self.out.parent)
        self._lock.close()

    def _write_journal(self) -> None:
        part = self.path / f"{JOURNAL}.part"
        part.write_text(json.dumps({"fingerprint": self.fingerprint, "done": self.done}, indent=1))
        _sync(part)
        part.replace(self.path / JOURNAL)

    def _check_same(self, started: dict[str, Any]) -> None:
        changed = sorted(key for key in {*started, *self.fingerprint} if started.get(key) != self.fingerprint.get(key))
        if changed:
            first = changed[0]
            raise ResumeError(
                f"{self.path} was started with another {', '.join(changed)} "
                f"({first} was {_short(started.get(first))}, is {_short(self.fingerprint.get(first))}); "
                "run it again as it was, or delete that folder to start anew"
            )


def staged_path(out: Path) -> Path:
    """Where `out` is built until it is whole."""
    return out.with_name(f"{out.name}.partial")


def check_target(out: Path) -> None:
    """Refuse an `out` that holds something: nothing is ever overwritten.

    Raises:
        OutputError: it is a file, or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; give another folder, or remove it first")


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that would hold `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def out_of_space_is_explained(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into an OutputError that says what to do; what is complete stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutputError(
            f"no space left for {path}: {os.strerror(error.errno)}. "
            "Free some and run the same command again; it goes on with the files that are missing"
        ) from error


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be created: {error.strerror}; give a target in a folder you may write to"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
