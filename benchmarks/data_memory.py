"""Peak memory of every verb over an input many times larger: gigabytes of synthetic code, half of it one row group."""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.registry import Result, Row, case

VERBS = {
    "clean": ["clean", "IN", "clean"],
    "dedup": ["dedup", "IN", "dedup"],
    "split": ["split", "IN", "split"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of this case."""
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of text; the bar is set for 5")
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work; needs about three times the text")


@case("data-memory", "peak private memory of the verbs on gigabytes of input", add_options)
def run(options: argparse.Namespace) -> Result:
    """Each verb as a command of its own; the memory of all its processes is summed several times a second."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "input").mkdir()
        nbytes = synthesize(folder / "input", int(options.gigabytes * 1e9))
        for verb in options.verbs:
            _, _, out = VERBS[verb]
            command = ["data", verb, str(folder / "input"), str(folder / out), "--num-proc", str(options.processes)]
            start = time.perf_counter()
            peak = peak_memory([sys.executable, "-c", "from moe_codegen.cli import main; main()", *command, "--quiet"])
            seconds = time.perf_counter() - start
            rows.append({"verb": verb, "GB": nbytes / 1e9, "peak GiB": peak / 2**30, "MB/s": nbytes / 1e6 / seconds})
            print(rows[-1], file=sys.stderr, flush=True)  # the next one may take long
    return Result(rows, [f"{options.processes} processes; private memory (USS) of all of them together"])


def synthesize(folder: Path, nbytes: int) -> int:
    """Files of random lines of the standard library, each numbered, so that no two files are near-duplicates.

    Half of them lie in shards of small row groups, half in a single row group.
    """
    generator = random.Random(0)
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    pool = [line for path in sources for line in path.read_text("utf-8", "replace").split("\n") if line.strip()]
    written = 0
    for shard, row_group in enumerate([1000, 1000, 1000, 1000, 1 << 30]):
        share = nbytes // 2 if row_group > 1000 else nbytes // 8
        schema = pa.schema([("repo", pa.string()), ("path", pa.string()), ("content", pa.string())])
        with pq.ParquetWriter(folder / f"shard-{shard}.parquet", schema, compression="zstd") as writer:
            held: list[pa.Table] = []
            done = number = 0
            while done < share:
                texts = [
                    numbered(generator.choices(pool, k=generator.randint(20, 400)), done + written) for _ in range(1000)
                ]
                names = [f"repo{generator.randrange(5000)}" for _ in texts]
                paths = [f"shard{shard}/{number + place}.py" for place in range(len(texts))]
                held.append(pa.table([names, paths, texts], schema=schema))
                done += sum(map(len, texts))
                number += len(texts)
                if row_group == 1000 or done >= share:
                    for part in held if row_group == 1000 else [pa.concat_tables(held)]:
                        writer.write_table(part, row_group_size=row_group)
                    held = []
        written += done
    return written


def numbered(lines: list[str], first: int) -> str:
    """The lines with a number each, counted on from `first`."""
    return "\n".join([f"{line} # {number}" for number, line in enumerate(lines, first)])


def peak_memory(command: list[str]) -> int:
    """Bytes of private memory that the command and all its children held at their most."""
    peak = 0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            held = 0
            try:
                for one in [process, *process.children(recursive=True)]:
                    held += one.memory_full_info().uss
            except psutil.Error:
                continue
            peak = max(peak, held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = child.wait()
    done.set()
    watcher.join()
    if status:
        raise RuntimeError(f"{' '.join(command[3:])} ended with status {status}")
    return peak
