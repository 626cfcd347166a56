"""Conversion at full size: how near plain writing it is, and how much memory it holds."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.published import add_model_options, source_and_mixture
from benchmarks.registry import Result, Row, case
from moe_codegen.reporting import format_bytes

CHUNK = 16 * 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, and the dtype it is written in."""
    add_model_options(parser)
    parser.add_argument("--dtype", default="bfloat16")


@case("convert", "upcycle a checkpoint of full size: time against plain writing, private memory", add_options)
def run(options: argparse.Namespace) -> Result:
    """For each repeat: plain writes, conversion, verification."""
    with source_and_mixture(options) as (source, out):
        rows = [_measure(source, out, options) for _ in range(options.repeats)]
    ratios = sorted(row["convert / plain"] for row in rows)
    return Result(rows, notes=[f"conversion / plain writing, median: {ratios[len(ratios) // 2]:.2f}"])


def _measure(source: Path, out: Path, options: argparse.Namespace) -> Row:
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--num-experts", str(options.num_experts), "--dtype", options.dtype, "--json"]
    planned, _, _ = _run("upcycle", str(source), str(out), *flags, "--dry-run")
    nbytes = planned["bytes"]
    _require_space(out.parent, nbytes)
    sizes: dict[str, int] = {}
    for record in planned["tensors"]:
        sizes[record["file"]] = sizes.get(record["file"], 0) + record["bytes"]
    plain = _write_plainly(out.parent, list(sizes.values()))
    converted, whole, peak = _run("upcycle", str(source), str(out), *flags)
    _, verify, verify_peak = _run("verify", str(source), str(out), "--json", "--max-tokens", "16")
    seconds = converted["seconds"]
    return {
        "model": options.model,
        "bytes": format_bytes(nbytes),
        "plain write s": plain,
        "convert s": sum(seconds.values()),
        "convert / plain": sum(seconds.values()) / plain,
        "whole process s": whole,
        "private peak": format_bytes(peak),
        "verify s": verify,
        "verify private peak": format_bytes(verify_peak),
    }


def _write_plainly(folder: Path, sizes: list[int]) -> float:
    """Seconds to write files of these sizes one after another, each fsynced; they are removed again."""
    buffer = os.urandom(CHUNK)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    start = time.perf_counter()
    for number, size in enumerate(sizes):
        with (scratch / str(number)).open("wb", buffering=0) as stream:
            for written in range(0, size, CHUNK):
                stream.write(buffer[: min(CHUNK, size - written)])
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(scratch)
    return seconds


def _run(*arguments: str) -> tuple[dict, float, int]:
    """Run the command line; returns what it printed as JSON, its seconds, and its peak of private bytes."""
    command = [sys.executable, "-c", "from moe_codegen.cli import main; main()", *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=_watch_private_memory, args=(process, peak))
    watcher.start()
    printed, _ = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} exited with {process.returncode}: {printed}")
    return json.loads(printed), seconds, peak[0]


def _watch_private_memory(process: subprocess.Popen, peak: list[int]) -> None:
    """Follow RssAnon: memory that is this process's own, not pages of files the kernel may drop."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        private = next((line for line in lines if line.startswith("RssAnon")), "RssAnon: 0 kB")
        peak[0] = max(peak[0], int(private.split()[1]) * 1024)
        time.sleep(0.01)


def _require_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes * 1.05:
        raise SystemExit(f"{folder} has {format_bytes(free)} free; this case writes {format_bytes(nbytes)} there")
