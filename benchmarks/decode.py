"""Generation with a model of full size on the CPU: tokens per second beside the dense model and the memory's speed."""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.published import add_model_options, source_and_mixture
from benchmarks.registry import Result, Row, case
from moe_codegen import MoEForCausalLM, upcycle
from moe_codegen.modeling.parameters import count_parameters

COPIED_BYTES = 2**30


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, and how long to generate."""
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=16)


@case("decode", "tokens per second of a mixture, its dense source, and the limit memory sets", add_options)
def run(options: argparse.Namespace) -> Result:
    """Generate greedily with one, then the other, in bf16; the first round only warms up."""
    rows = []
    with source_and_mixture(options) as (source, mixture):
        if not mixture.exists():
            upcycle(source, mixture, num_experts=options.num_experts, dtype="bfloat16")
        for name, model_class, path, packed in (
            ("dense", AutoModelForCausalLM, source, {}),
            ("mixture", MoEForCausalLM, mixture, {}),
            ("mixture, packed", MoEForCausalLM, mixture, {"pack_experts": True}),
        ):
            model = model_class.from_pretrained(path, dtype=torch.bfloat16, **packed).eval()
            rows.append(_measure(name, model, options.tokens, options.repeats))
            del model
    dense = rows[0]["tokens / s"]
    return Result(rows, notes=[f"{row['model']} / dense: {row['tokens / s'] / dense:.2f}" for row in rows[1:]])


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
