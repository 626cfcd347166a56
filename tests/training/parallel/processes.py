"""Functions run by several processes at once that talk over gloo, as torchrun would start them."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

# Forked from a server that has imported everything once.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.training.parallel.preloaded"])


def run(world_size, function, *args):
    """What `function(*args)` returned in each of `world_size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        started = start(world_size, Path(folder), function, *args)
        deadline = time.monotonic() + 300
        while any(process.is_alive() for process in started) and time.monotonic() < deadline:
            time.sleep(0.02)
            if any(process.exitcode for process in started):
                break  # the others may be waiting for it
        for process in started:
            process.kill()
        results = [pickle.loads(file.read_bytes()) for file in sorted(Path(folder).glob("result-*"))]
    for failed in (result for result in results if isinstance(result, str)):
        raise AssertionError(failed)
    assert len(results) == world_size, f"only {len(results)} of {world_size} processes ended"
    return results


def start(world_size, folder, function, *args):
    """The processes, running; each leaves its result, or its traceback, in `folder`."""
    ranks = range(world_size)
    started = [server.Process(target=_one, args=(rank, world_size, folder, function, args)) for rank in ranks]
    for process in started:
        process.start()
    return started


def _one(rank, world_size, folder, function, args):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size)
    )
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    result, failed = None, 0
    try:
        result = function(*args)
    except BaseException:
        result, failed = traceback.format_exc(), 1
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
    os._exit(failed)  # without a goodbye, which would wait for the others
