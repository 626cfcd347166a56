"""How long work tells whoever started it how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

# progress(step, total_bytes, done_bytes) when a step begins; what it returns is called with each advance in bytes.
Progress = Callable[[str, int, int], Callable[[int], None]]


def no_progress(step: str, total: int, done: int) -> Callable[[int], None]:
    """Watch nothing."""
    return lambda nbytes: None


@contextmanager
def bytes_bar(console: Console) -> Iterator[Progress]:
    """A bar for each step with bytes, rate and remaining time; silent where `console` is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:

        def begin(step: str, total: int, done: int) -> Callable[[int], None]:
            task = bars.add_task(step, total=total, completed=done)
            return lambda nbytes: bars.advance(task, nbytes)

        yield begin


@contextmanager
def count_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each title that `show(title, done, total)` is called with; silent where `console` is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)

        yield show
