"""Worker processes: one unit each at a time, never outliving the process that started them."""

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

from moe_codegen.data.passes.progress import Progress, count_into
from moe_codegen.errors import WorkerError

# Does `function(*job)` for every job, somewhere; returns when all are done, raises when one failed.
Mapper = Callable[[Callable[..., None], Sequence[tuple[Any, ...]], int, Progress | None], None]


def map_units(
    function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], num_proc: int, progress: Progress | None
) -> None:
    """`function(*job)` for every job, in this process or in `num_proc` others; stops at the first error.

    Raises what `function` raised, or `WorkerError` where a process died.
    """
    # A fork server: plain forks would copy threads' locks, and a spawn would import everything for each worker.
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["moe_codegen.data"])
    counters = context.Array("q", 3)
    if progress is not None:
        progress.counters = counters
    if num_proc <= 1 or len(jobs) <= 1:
        count_into(counters)
        for job in jobs:
            function(*job)
        return
    workers = min(num_proc, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counters,)) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process died, most likely for lack of memory; finished units are kept: "
                "run the same command again, with a lower --num-proc"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def keep_freed_memory() -> None:
    """Let the C library keep up to 128 MiB of freed memory instead of giving it back after each batch.

    A third of the time of measuring a batch went into page faults on arrays that had just been freed. Only the GNU C
    library knows these options; elsewhere nothing changes.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(trim_threshold, 128 << 20)
        library.mallopt(mmap_threshold, 32 << 20)


def _start_worker(counters: SynchronizedArray) -> None:
    keep_freed_memory()
    # One thread in each library: the processes are the parallelism.
    os.environ["RAYON_NUM_THREADS"] = "1"
    count_into(counters)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Leave when the parent is gone: after a SIGKILL nothing else tells a worker, and a resumed run needs peace."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
