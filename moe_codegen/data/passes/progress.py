"""Progress of a pass: files and megabytes a second, kept share, remaining time; counted in the workers, shown here."""

import threading
from multiprocessing.sharedctypes import SynchronizedArray
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

FILES, BYTES, KEPT = range(3)
_counters: SynchronizedArray | None = None


def count_into(counters: SynchronizedArray) -> None:
    """Make `advance` in this process add to `counters`."""
    global _counters
    _counters = counters


def advance(files: int, nbytes: int, kept: int) -> None:
    """Count `files` more files of `nbytes` bytes done, `kept` of them kept."""
    if _counters is not None:
        with _counters.get_lock():
            _counters[FILES] += files
            _counters[BYTES] += nbytes
            _counters[KEPT] += kept


class Progress:
    """A progress bar on standard error, refreshed from shared counters by a thread of its own."""

    def __init__(self, title: str, total_bytes: int) -> None:
        self.counters: SynchronizedArray | None = None
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("kept {task.fields[kept]:.1%}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=total_bytes or None, kept=1.0, rate="")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> "Progress":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        if kind is None:
            self._bar.update(
                self._task, total=self._bar.tasks[0].completed or 1, completed=self._bar.tasks[0].completed or 1
            )
        self._bar.stop()

    def _refresh(self) -> None:
        while not self._stop.wait(0.2):
            self._show()

    def _show(self) -> None:
        if self.counters is not None:
            files, nbytes, kept = self.counters[:]
            seconds = max(self._bar.tasks[0].elapsed or 0.0, 1e-3)
            rate = f"{files / seconds:,.0f} files/s {nbytes / seconds / 1e6:,.1f} MB/s"
            self._bar.update(self._task, completed=nbytes, kept=kept / max(files, 1), rate=rate)
