"""Carrying a plan out: shards written in parallel, each recorded when it is on the disk."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from moe_codegen.checkpoint import Shard, StagedFolder, out_of_space_is_explained, write_shard


class _Stopped(Exception):
    """Another shard failed, or the user interrupted; this one is given up."""


def write_shards(
    shards: list[Shard], staged: StagedFolder, workers: int, advance: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Write those of `shards` that `staged` has not got yet, `workers` at a time.

    A shard's bytes do not depend on the worker that writes it, nor on what was written before. Threads are enough:
    casting, hashing and writing all leave Python's lock.

    Raises:
        OutputError: no space is left. What is complete stays, and a second run goes on from there.
    """
    stop = threading.Event()
    journal = threading.Lock()

    def advance_or_stop(nbytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        advance(nbytes)

    def write(shard: Shard) -> None:
        with out_of_space_is_explained(staged.out):
            sha256 = write_shard(staged.path, shard, advance_or_stop)
            with journal:
                staged.record(shard.file, sha256)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(write, shard) for shard in shards if shard.file not in staged.done]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    failures = [f.exception() for f in futures if not f.cancelled() and f.exception() is not None]
    for failure in failures:
        if failure is not None and not isinstance(failure, _Stopped):
            raise failure
