"""From repositories to training batches, as data.toml beside this file says.

python examples/00_data.py REPOSITORIES OUT     a folder of checkouts, of Parquet or of JSONL files; or a Hub id
python examples/00_data.py --tiny               a few packages of Python's own library, in a temporary folder
"""

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from moe_codegen.data import Plan, TokenizerSettings, collate, load_packed, packed_languages, prepare, read_plan

PLAN = Path(__file__).with_name("data.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="repositories, shards or a Hub id")
    parser.add_argument("out", nargs="?", type=Path, help="folder to create")
    parser.add_argument("--tiny", action="store_true", help="a few small packages in a temporary folder")
    arguments = parser.parse_args()
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            run(make_tiny(Path(folder)), Path(folder) / "out")
    elif arguments.source and arguments.out:
        run(replace(read_plan(PLAN), source=arguments.source), arguments.out)
    else:
        parser.error("give SOURCE and OUT, or --tiny")


def run(plan: Plan, out: Path) -> None:
    # Every step writes a folder; a killed run, given again, goes on where it stopped and writes the same bytes.
    for folder, manifest in prepare(plan, out).items():
        print(f"{folder}: {manifest['verb']}, {manifest['rows']:,} rows")
    print(f"what was dropped and why: {out / 'report' / 'report.md'}")

    # Sequences of whole documents, shuffled; `collate` keeps the documents apart by their position ids.
    train = next(out.glob("*-pack-train"))
    batch = collate(list(load_packed(train).take(4)), with_languages=True)
    for name, values in batch.items():
        print(f"{name}: {tuple(values.shape)} {values.dtype}")
    for number, language in enumerate(packed_languages(train)):
        print(f"{language}: {(batch['language_ids'] == number).sum():,} tokens of this batch")


def make_tiny(folder: Path) -> Plan:
    """The plan for packages of the standard library, with small sequences, and a tokenizer trained on them."""
    library = Path(os.__file__).parent
    for name in ("concurrent", "http", "importlib", "json", "logging", "urllib", "wsgiref", "xml"):
        shutil.copytree(library / name, folder / "repositories" / name)
        (folder / "repositories" / name / "LICENSE").write_text("SPDX-License-Identifier: PSF-2.0")
    problem = {
        "task_id": "tiny/0",
        "prompt": "def urldefrag(url):",
        "canonical_solution": "s, n, p, a, q, frag = urlparse(url)",
    }
    (folder / "benchmark.jsonl").write_text(json.dumps(problem))
    plan = read_plan(PLAN)
    smaller = {
        "decontaminate": replace(plan.steps["decontaminate"], benchmarks=(str(folder / "benchmark.jsonl"),)),
        "split": replace(plan.steps["split"], validation=0.3),
        "tokenizer": TokenizerSettings(vocabulary=1000),
        "pack": replace(plan.steps["pack"], sequence_length=256),
    }
    return replace(plan, source=str(folder / "repositories"), steps=plan.steps | smaller)


if __name__ == "__main__":
    main()
