"""Tasks on threads that stop together: when one fails, or the user interrupts."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")
# Told of each advance in bytes.
Advance = Callable[[int], None]


class _Stopped(Exception):
    """Another task failed, or the user interrupted; this one is given up."""


def run_parallel(
    tasks: Iterable[Callable[[Advance], Result]], workers: int, advance: Advance = lambda nbytes: None
) -> list[Result]:
    """Call each task with an `advance`, `workers` at a time; returns their results in order.

    Threads are enough: casting, hashing, reading and writing all leave Python's lock.

    Raises:
        The error of the first task that failed; the others are stopped at their next advance.
    """
    begin, stop = threading.Event(), threading.Event()

    def advance_or_stop(nbytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        advance(nbytes)

    def run(task: Callable[[Advance], Result]) -> Result:
        # An interrupt while the pool starts a thread leaves one that the pool does not know and would not wait for:
        # nothing begins before all are known.
        begin.wait()
        advance_or_stop(0)
        return task(advance_or_stop)

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(run, task) for task in tasks]
            begin.set()
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            begin.set()
            pool.shutdown(cancel_futures=True)
    for future in futures:
        failure = None if future.cancelled() else future.exception()
        if failure is not None and not isinstance(failure, _Stopped):
            raise failure
    return [future.result() for future in futures]
