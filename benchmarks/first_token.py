"""From the start of a process to its first token, with a model of full size whose files are in the page cache."""

import argparse
import json
import statistics
import subprocess
import sys
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM

from benchmarks.published import add_model_options, source_and_mixture
from benchmarks.registry import Result, Row, case
from moe_codegen import upcycle

# A process of its own: starts the clock, imports, loads, and generates one token; what it says is one line of JSON.
PROGRAM = """
import time
start = time.perf_counter()
import json, sys, torch
from transformers import AutoModelForCausalLM
import moe_codegen
path = sys.argv[1]
imported = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
ready = time.perf_counter()
prompt = torch.arange(100, 100 + int(sys.argv[2]))[None]
model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False)
first = time.perf_counter()
memory = {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/self/status") if "kB" in line}
print(json.dumps({
    "import s": imported - start, "load s": ready - imported, "first token s": first - ready,
    "all s": first - start, "private GB": memory["RssAnon"] / 1e6, "mapped GB": memory["RssFile"] / 1e6,
}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, and how long a prompt: 32 tokens touch every expert, a single one K of each layer."""
    add_model_options(parser)
    parser.add_argument("--prompt-tokens", nargs="+", type=int, default=[1, 32])


@case("first-token", "from process start to the first token, a mixture beside its dense source", add_options)
def run(options: argparse.Namespace) -> Result:
    """Dense and mixture in turn, both stored in bf16; the first round fills the page cache."""
    rows: list[Row] = []
    with source_and_mixture(options) as (source, mixture), TemporaryDirectory(prefix="moe-codegen-") as folder:
        if not mixture.exists():
            upcycle(source, mixture, num_experts=options.num_experts, dtype="bfloat16")
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(folder)
        for length in options.prompt_tokens:
            runs: dict[str, list[Row]] = {folder: [], str(mixture): []}
            for repeat in range(options.repeats + 1):
                for path, taken in runs.items():
                    command = [sys.executable, "-c", PROGRAM, path, str(length)]
                    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    if repeat:
                        taken.append(json.loads(printed.splitlines()[-1]))
            for name, taken in zip(("dense", "mixture"), runs.values(), strict=True):
                medians = {key: statistics.median(each[key] for each in taken) for key in taken[0]}
                rows.append({"model": name, "prompt tokens": length} | medians)
    notes = [
        f"mixture / dense, from process start, {sparse['prompt tokens']} tokens: {sparse['all s'] / dense['all s']:.2f}"
        for dense, sparse in zip(rows[::2], rows[1::2], strict=True)
    ]
    return Result(rows, notes)
