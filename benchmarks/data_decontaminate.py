"""Decontamination: every prompt and solution planted in a file of its own, and what innocent files it costs."""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus import SKIPPED, find_corpus
from benchmarks.registry import Result, case
from moe_codegen.data import DecontaminateSettings, decontaminate, open_source

PLANTED_KEYS = ("prompt", "canonical_solution", "canonical")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of this case."""
    parser.add_argument(
        "--benchmarks", nargs="+", type=Path, default=[], help="JSONL files or folders of HumanEval, MBPP, MultiPL-E"
    )
    parser.add_argument("--files", type=int, default=3000, help="innocent files")


@case("data-decontaminate", "planted benchmark prompts and solutions removed, innocent files lost", add_options)
def run(options: argparse.Namespace) -> Result:
    """One pass over planted and innocent files; needs the benchmarks' own files."""
    corpus = find_corpus()
    if corpus is None or not options.benchmarks:
        return Result([], [SKIPPED if corpus is None else "skipped: name the benchmarks' files with --benchmarks"])
    generator = random.Random(0)
    tables = [pq.read_table(path, columns=["content"]) for path in sorted(corpus.glob("*.parquet"))]
    innocent = generator.sample([text for table in tables for text in table["content"].to_pylist()], options.files)
    paths = [path for name in options.benchmarks for path in ([name] if name.is_file() else name.rglob("*.jsonl"))]
    texts = [
        (key, row[key])
        for path in sorted(paths)
        for row in map(json.loads, path.read_text().splitlines())
        for key in PLANTED_KEYS
        if row.get(key) and row[key].strip()
    ]
    planted = [f"{generator.choice(innocent)}\n{reindented(text, generator)}\n{innocent[0]}" for _, text in texts]
    with tempfile.TemporaryDirectory() as folder:
        names = [f"innocent/{number}" for number in range(len(innocent))]
        names += [f"{key}/{number}" for number, (key, _) in enumerate(texts)]
        pq.write_table(pa.table({"path": names, "content": innocent + planted}), Path(folder, "files.parquet"))
        start = time.perf_counter()
        settings = DecontaminateSettings(tuple(map(str, options.benchmarks)))
        decontaminate(open_source(Path(folder, "files.parquet")), Path(folder, "out"), settings)
        seconds = time.perf_counter() - start
        left = [name.as_py() for path in Path(folder, "out").glob("*.parquet") for name in pq.read_table(path)["path"]]
    rows = []
    for kind in ("innocent", *PLANTED_KEYS):
        total = sum(name.startswith(f"{kind}/") for name in names)
        rows.append(
            {"what": kind, "files": total, "removed": total - sum(name.startswith(f"{kind}/") for name in left)}
        )
    megabytes = sum(map(len, innocent + planted)) / 1e6
    return Result(rows, [f"{megabytes:.0f} MB in {seconds:.1f} s, one process, reading and writing included"])


def reindented(text: str, generator: random.Random) -> str:
    """`text` with another indentation."""
    indent = generator.choice(["", "\t", "      "])
    return "\n".join(indent + line for line in text.split("\n"))
