"""How much of the speed of reading is left when files are filtered and hashed, and with MinHash on top.

Two readings to compare with: rows of `datasets`, as a script over The Stack reads them, and our own reader, which
makes no Python object of a row and so leaves less time to hide behind. Between them stands what the machine allows a
filter in Python: the same batches with each file made a string once, and nothing else.
"""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import pyarrow as pa
import xxhash

from benchmarks.corpus import SKIPPED, find_corpus
from benchmarks.registry import Result, Row, case
from moe_codegen.data.deduplication.minhash import bands
from moe_codegen.data.deduplication.shingles import shingles
from moe_codegen.data.filtering.filters import CleanSettings, judge
from moe_codegen.data.passes.output import finished
from moe_codegen.data.passes.workers import keep_freed_memory
from moe_codegen.data.reading.parquet import ParquetUnit
from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.rows.batch import each_text

ROWS, BATCHES, STRINGS, FILTERED, SIGNED = MODES = (
    "read: datasets, rows",
    "read: ours, batches",
    "read (ours) + a str of each file",
    "read (ours) + filters + hash",
    "read (ours) + filters + hash + MinHash",
)
GOALS = {FILTERED: 0.5, SIGNED: 0.2}


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
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("forkserver"), keep_freed_memory) as pool:
        for mode in MODES:  # imports, page cache
            list(pool.map(work, [mode] * len(units), units))
        for _ in range(options.rounds):
            for mode in MODES:
                start = time.perf_counter()
                nbytes = sum(pool.map(work, [mode] * len(units), units))
                seconds[mode].append(time.perf_counter() - start)
    rows = []
    for mode in MODES:
        row: Row = {"what": mode, "MB/s (median)": nbytes / 1e6 / statistics.median(seconds[mode])}
        for name, reading in (("of datasets rows", ROWS), ("of our batches", BATCHES)):
            ratios = [read / mine for read, mine in zip(seconds[reading], seconds[mode], strict=True)]
            row[name] = statistics.median(ratios)
        rows.append({**row, "goal": GOALS.get(mode, "")})
    return Result(rows, [f"{options.processes} processes, {nbytes / 1e6:.0f} MB, {options.rounds} rounds"])


def work(mode: str, unit: ParquetUnit) -> int:
    """Bytes of text of one unit, read and worked on as `mode` says."""
    if mode == ROWS:
        import datasets  # here, so that the other cases run where it is not installed

        stream = datasets.load_dataset("parquet", data_files=[str(unit.path)], split="train", streaming=True)
        return sum(len(row["content"]) for row in stream)
    nbytes = 0
    settings = CleanSettings()
    for batch in unit.batches():
        nbytes += batch.rows.column("content").nbytes
        if mode == STRINGS:
            batch.rows.column("content").cast(pa.string()).to_pylist()
        if mode in (BATCHES, STRINGS):
            continue
        kept = judge(batch, settings, licensed=False).kept
        finished(kept)
        for content in each_text(kept.column("content")):
            xxhash.xxh3_128_digest(content)
        if mode == SIGNED:
            bands(shingles(kept.column("content")), 256, 25, 10)
    return nbytes
