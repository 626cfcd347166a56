"""How long work tells whoever started it how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

# progress(step, total, done) when a step begins, in the unit of its bar; what it returns is called with each advance.
Progress = Callable[[str, int, int], Callable[[int], None]]


def no_progress(step: str, total: int, done: int) -> Callable[[int], None]:
    """Watch nothing."""
    return lambda advance: None


@contextmanager
def bytes_bar(console: Console) -> Iterator[Progress]:
    """A bar for each step with bytes, rate and remaining time; silent where `console` is no terminal."""
    with _bars(console, DownloadColumn(), TransferSpeedColumn()) as progress:
        yield progress


@contextmanager
def counts_bar(console: Console) -> Iterator[Progress]:
    """A bar for each step with what is done and remaining time; silent where `console` is no terminal."""
    with _bars(console, MofNCompleteColumn()) as progress:
        yield progress


@contextmanager
def _bars(console: Console, *columns: ProgressColumn) -> Iterator[Progress]:
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Bars(*shown, console=console, disable=not console.is_terminal) as bars:

        def begin(step: str, total: int, done: int) -> Callable[[int], None]:
            task = bars.add_task(step, total=total, completed=done)
            return lambda advance: bars.advance(task, advance)

        yield begin
