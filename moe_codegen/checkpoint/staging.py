"""A folder that appears whole or not at all, and whose making can be interrupted and taken up again."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_codegen.errors import OutputError, ResumeError

JOURNAL = "journal.json"
JOURNAL_PART = f"{JOURNAL}.part"
LOCK = ".lock"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StagedFolder:
    """Builds `out` as `<out>.partial` beside it, and renames it when it is whole.

        staged = StagedFolder(out, fingerprint)  # checks, and touches nothing
        with staged:
            ...  # write files into staged.path, and record those that a second run need not write again
            staged.finish()

    A journal in the staged folder lists the files that are complete, and the fingerprint of what is being made. A
    second run with the same fingerprint goes on where the first one stopped; with another it is refused.

    Attributes:
        path: the staged folder.
        done: file -> {"bytes", "sha256"} of the files already complete.

    Raises:
        OutputError: `out` or the staged folder is in the way, cannot be created, has too little space, or is being
            made by another process.
        ResumeError: a staged folder is there and was started from something else.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any]) -> None:
        self.out = resolve_target(out)
        self.path = staged_path(self.out)
        # Compared as JSON, which is what the journal gives back.
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.done = self._read_journal()

    def __enter__(self) -> "StagedFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("w")
        except OSError as error:
            raise _cannot_create(self.path, error) from error
        try:
            self._take_lock()
            resolve_target(self.out)  # another process may have finished it since
            self.done = self._read_journal()
            self._write_journal()
        except BaseException as error:
            self.__exit__(type(error), error)  # which `with` leaves out where entering fails
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: object) -> None:
        self._lock.close()
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise OutputError(
                f"no space left for {self.out}: {error.strerror}. "
                "Free some and run the same command again; it goes on with the files that are missing"
            ) from error

    def check_space(self, nbytes: int, to_download: Mapping[Path, int] | None = None) -> None:
        """Refuse to begin, or to go on, if `nbytes` of weights in all do not fit on the disk; OutputError.

        Args:
            nbytes: of the weights to write.
            to_download: folder -> bytes that go into it before; those of folders on the same disk count, too.
        """
        disk = _existing(self.out).stat().st_dev
        downloads = sum(size for folder, size in (to_download or {}).items() if folder.stat().st_dev == disk)
        # What a killed run left of unfinished files is written over.
        written = [*self.path.glob("*.safetensors"), *self.path.glob("*.safetensors.part")]
        needed, free = nbytes + downloads - sum(file.stat().st_size for file in written), free_bytes(self.out)
        if needed > free:
            raise OutputError(
                f"{self.out} needs {needed / 1e9:.2f} GB{' with the download' if downloads else ''} and its disk has "
                f"{free / 1e9:.2f} GB free; free some, or give a target on another disk"
            )

    def record(self, file: str, sha256: str) -> None:
        """Note that `file` is complete and on the disk."""
        self.done[file] = {"bytes": (self.path / file).stat().st_size, "sha256": sha256}
        self._write_journal()

    def finish(self) -> None:
        """Give the folder its name. From here on it is whole."""
        for file in self.path.iterdir():
            _sync(file)
        _sync(self.path)
        self.path.replace(self.out)
        _sync(self.out.parent)
        # Only now: without its journal a staged folder could not be told from a stranger's.
        (self.out / JOURNAL).unlink()
        (self.out / LOCK).unlink()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{self.path} is being written by another process; wait for it to end") from None
        except OSError:
            pass  # a file system without locks, such as some clusters have

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """The files that an earlier run completed, if they are still there."""
        journal = self.path / JOURNAL
        if journal.exists():
            try:
                started = json.loads(journal.read_text())
                self._check_same(started["fingerprint"])
                return {file: entry for file, entry in started["done"].items() if self._has(file, entry["bytes"])}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise OutputError(
                    f"{journal} is damaged or was not written by this command ({error!r}); remove {self.path} to start "
                    "anew"
                ) from error
        if self.path.exists() and not self._is_unwritten():
            raise OutputError(
                f"{self.path} is in the way and was not started by this command (it has no {JOURNAL}); remove it"
            )
        return {}

    def _is_unwritten(self) -> bool:
        """Whether a run was killed before it had so much as a journal."""
        return self.path.is_dir() and {file.name for file in self.path.iterdir()} <= {LOCK, JOURNAL_PART}

    def _has(self, file: str, nbytes: int) -> bool:
        path = self.path / file
        return path.is_file() and path.stat().st_size == nbytes

    def _write_journal(self) -> None:
        part = self.path / JOURNAL_PART
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


def resolve_target(out: str | Path) -> Path:
    """The absolute path of the folder to create, symbolic links followed.

    Raises:
        OutputError: something is there already (nothing is ever overwritten), or it could not be created.
    """
    out = Path(out).expanduser().resolve()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} exists and is not an empty folder; give another, or remove it first")
        if out.is_mount():  # it appears by renaming, and a disk's root cannot be renamed onto
            raise OutputError(f"{out} is the root of a disk; give a folder in it")
        parent = _existing(staged_path(out))
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise _cannot_create(out, error) from error
    return out


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that would hold `path`, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def staged_path(out: Path) -> Path:
    """Where `out` is built until it is whole."""
    return out.with_name(f"{out.name}.partial")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def _cannot_create(path: Path, error: OSError) -> OutputError:
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
    return OutputError(f"{path} cannot be created: {error.strerror}{where}; give a target in a folder you may write to")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
