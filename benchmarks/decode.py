"""Generation with a model of full size on the CPU: tokens per second beside the dense model and the memory's speed."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from moe_codegen.modeling.parameters import count_parameters
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.published import PUBLISHED, write_published
from benchmarks.registry import Result, Row, case
from moe_codegen import MoEForCausalLM, upcycle

COPIED_BYTES = 2**30


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, its mixture, and how long to generate."""
    parser.add_argument("--model", choices=PUBLISHED, default="santacoder")
    parser.add_argument("--num-layers", type=int, help="fewer than published, for a smaller trial")
    parser.add_argument("--num-experts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="holds the two checkpoints; made there if absent [temporary]")


@case("decode", "tokens per second of a mixture, its dense source, and the limit memory sets", add_options)
def run(options: argparse.Namespace) -> Result:
    """Generate greedily with both, in turn, in bf16; the first round only warms up."""
    folder = options.folder or Path(tempfile.mkdtemp(prefix="moe-codegen-"))
    source, mixture = folder / options.model, folder / f"{options.model}-moe"
    try:
        if not source.exists():
            write_published(options.model, source, options.num_layers)
        if not mixture.exists():
            upcycle(source, mixture, num_experts=options.num_experts, dtype="bfloat16")
        rows = []
        for name, model_class, path in (
            ("dense", AutoModelForCausalLM, source),
            ("mixture", MoEForCausalLM, mixture),
        ):
            model = model_class.from_pretrained(path, dtype=torch.bfloat16).eval()
            rows.append(_measure(name, model, options.tokens, options.repeats))
            del model
    finally:
        if not options.folder:
            shutil.rmtree(folder)
    dense, sparse = (row["tokens / s"] for row in rows)
    return Result(rows, notes=[f"mixture / dense: {sparse / dense:.2f}"])


def _measure(name: str, model: PreTrainedModel, tokens: int, repeats: int) -> Row:
    prompt = torch.arange(100, 132)[None]
    bandwidth, seconds = 0.0, []
    for repeat in range(repeats + 1):
        bandwidth = max(bandwidth, _copy_bandwidth())
        # The same prompt with one token and with all: the difference is decoding alone.
        taken = _generate(model, prompt, tokens + 1) - _generate(model, prompt, 1)
        if repeat:
            seconds.append(taken)
    pace = tokens / sorted(seconds)[len(seconds) // 2]
    active_bytes = count_parameters(model.config).active * model.dtype.itemsize
    limit = bandwidth / active_bytes
    return {
        "model": name,
        "active GB": active_bytes / 1e9,
        "copy GB / s": bandwidth / 1e9,
        "tokens / s": pace,
        "limit tokens / s": limit,
        "of limit": pace / limit,
    }


def _generate(model: PreTrainedModel, prompt: torch.Tensor, tokens: int) -> float:
    start = time.perf_counter()
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    return time.perf_counter() - start


def _copy_bandwidth() -> float:
    """Bytes read and written per second by a copy larger than any cache."""
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    start = time.perf_counter()
    target.copy_(source)
    return 2 * COPIED_BYTES / (time.perf_counter() - start)
