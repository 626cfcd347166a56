"""What `import moe_codegen` costs beside importing one of transformers' own MoE models."""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.registry import Result, case

IMPORTS = {
    "from moe_codegen import MoEForCausalLM": "ours",
    "from transformers import MixtralForCausalLM": "theirs",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--repeats", type=int, default=7)


@case("import", "time to import MoEForCausalLM, beside transformers' MixtralForCausalLM", add_options)
def run(options: argparse.Namespace) -> Result:
    """Import each in new processes, in turn, after one warm-up."""
    seconds: dict[str, list[float]] = {statement: [] for statement in IMPORTS}
    for repeat in range(options.repeats + 1):
        for statement, taken in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if repeat:
                taken.append(time.perf_counter() - start)
    rows = [
        {"import": statement, "median s": statistics.median(taken), "least s": min(taken)}
        for statement, taken in seconds.items()
    ]
    ratio = rows[0]["median s"] / rows[1]["median s"]
    return Result(rows, notes=[f"ours / theirs, median: {ratio:.2f}"])
