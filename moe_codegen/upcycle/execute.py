"""Carrying a plan out: shards written in parallel, each recorded when it is on the disk."""

import threading
from functools import partial

from moe_codegen.checkpoint import Shard, StagedFolder, write_shard
from moe_codegen.reporting import Progress
from moe_codegen.upcycle.parallel import Advance, run_parallel


def write_shards(shards: list[Shard], staged: StagedFolder, workers: int, progress: Progress, step: str) -> None:
    """Write those of `shards` that `staged` has not got yet, `workers` at a time.

    A shard's bytes do not depend on the worker that writes it, nor on what was written before.
    """
    journal = threading.Lock()

    def write(shard: Shard, advance: Advance) -> None:
        sha256 = write_shard(staged.path, shard, advance)
        with journal:
            staged.record(shard.file, sha256)

    missing = [shard for shard in shards if shard.file not in staged.done]
    total, to_write = (sum(shard.nbytes for shard in group) for group in (shards, missing))
    advance = progress(step, total, total - to_write)
    run_parallel([partial(write, shard) for shard in missing], workers, advance)
