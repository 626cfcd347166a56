"""How much of the speed of reading is left when files are filtered and hashed, and with MinHash on top."""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import xxhash

from benchmarks.corpus import SKIPPED, find_corpus
from benchmarks.registry import Result, case
from moe_codegen.data.batch import each_text, finished
from moe_codegen.data.filters import CleanSettings, judge
from moe_codegen.data.minhash import bands
from moe_codegen.data.shingles import shingles
from moe_codegen.data.sources import Unit, open_source

MODES = ("read", "read + filters + hash", "read + filters + hash + MinHash")
GOALS = {"read + filters + hash": 0.5, "read + filters + hash + MinHash": 0.2}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of this case."""
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)


@case("data-throughput", "reading alone against reading with filters, hashes and MinHash", add_options)
def run(options: argparse.Namespace) -> Result:
    """Every mode over the whole corpus in each round, so that a busy machine is as busy for all of them."""
    corpus = find_corpus()
    if corpus is None:
        return Result([], [SKIPPED])
    units = open_source(corpus).units
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("forkserver")) as pool:
        for mode in MODES:  # imports, page cache
            list(pool.map(work, [mode] * len(units), units))
        for _ in range(options.rounds):
            for mode in MODES:
                start = time.perf_counter()
                nbytes = sum(pool.map(work, [mode] * len(units), units))
                seconds[mode].append(time.perf_counter() - start)
    rows = []
    for mode in MODES:
        ratios = [read / mine for read, mine in zip(seconds[MODES[0]], seconds[mode], strict=True)]
        rows.append(
            {
                "what": mode,
                "MB/s (median)": nbytes / 1e6 / statistics.median(seconds[mode]),
                "of reading (median)": statistics.median(ratios),
                "least": min(ratios),
                "goal": GOALS.get(mode, ""),
            }
        )
    return Result(rows, [f"{options.processes} processes, {nbytes / 1e6:.0f} MB, {options.rounds} rounds"])


def work(mode: str, unit: Unit) -> int:
    """Bytes of text of one unit, read and worked on as `mode` says."""
    nbytes = 0
    settings = CleanSettings()
    for batch in unit.batches():
        nbytes += batch.rows.column("content").nbytes
        if mode == MODES[0]:
            continue
        kept = judge(batch, settings, licensed=False).kept
        finished(kept)
        for content in each_text(kept.column("content")):
            xxhash.xxh3_128_digest(content)
        if mode == MODES[2]:
            bands(shingles(kept.column("content")), 256, 25, 10)
    return nbytes
