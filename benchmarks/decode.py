"""Generation with a model of full size on the CPU: dense, its mixture in bf16, 8 and 4 bits, and the memory's speed."""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmarks.bandwidth import read_bandwidth
from benchmarks.published import add_model_options, source_and_mixture
from benchmarks.registry import Result, Row, case
from moe_codegen import MoEConfig, MoEForCausalLM, quantise, upcycle
from moe_codegen_kernels.cpu import describe_cpu_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, and how long to generate."""
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--only", action="append", help="such as 'mixture int8'; may be given again [all]")


@case("decode", "tokens per second of a dense model and its mixture in bf16, int8, int4; memory's limit", add_options)
def run(options: argparse.Namespace) -> Result:
    """Generate greedily with one after the other; all but the quantised experts is bf16."""
    rows, bandwidth = [], read_bandwidth()
    with source_and_mixture(options) as (source, mixture):
        if not mixture.exists():
            upcycle(source, mixture, num_experts=options.num_experts, dtype="bfloat16")
        packed = {"pack_experts": True}
        for name, model_class, path, asked in (
            ("dense", AutoModelForCausalLM, source, {}),
            ("mixture", MoEForCausalLM, mixture, {}),
            ("mixture packed", MoEForCausalLM, mixture, packed),
            ("mixture int8", MoEForCausalLM, _quantised(mixture, 8), {}),
            ("mixture int4", MoEForCausalLM, _quantised(mixture, 4), {}),
        ):
            if options.only and name not in options.only:
                continue
            model = model_class.from_pretrained(path, dtype=torch.bfloat16, **asked).eval()
            rows.append(_measure(name, model, options.tokens, options.repeats, bandwidth))
            del model
    pace = {row["model"]: row["tokens / s"] for row in rows}
    pairs = (
        ("mixture", "dense"),
        ("mixture packed", "mixture"),
        ("mixture int8", "mixture"),
        ("mixture int4", "mixture"),
    )
    notes = [f"{a} / {b}: {pace[a] / pace[b]:.2f}" for a, b in pairs if a in pace and b in pace]
    return Result(rows, notes=[f"experts: {describe_cpu_path()}", *notes])


def _quantised(mixture: Path, bits: int) -> Path:
    """The mixture with experts of `bits`, written beside it if it is not there."""
    path = mixture.with_name(f"{mixture.name}-int{bits}")
    if not path.exists():
        quantise(mixture, path, bits=bits)
    return path


class _Clock(BaseStreamer):
    """When `generate` handed over what: the prompt, then one token after the other."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _measure(name: str, model: PreTrainedModel, tokens: int, repeats: int, bandwidth: float) -> Row:
    """The median token of all repeats, each after a prompt of 32; the first round only warms up."""
    prompt = torch.arange(100, 132)[None]
    seconds = []
    for repeat in range(repeats + 1):
        clock = _Clock()
        length = {"max_new_tokens": tokens + 1, "min_new_tokens": tokens + 1}
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **length, do_sample=False, streamer=clock)
        if repeat:
            seconds += [after - before for before, after in itertools.pairwise(clock.times[1:])]
    pace = 1 / statistics.median(seconds)
    active_bytes = _active_bytes(model)
    limit = bandwidth / active_bytes
    return {
        "model": name,
        "active GB": active_bytes / 1e9,
        "read GB / s": bandwidth / 1e9,
        "tokens / s": pace,
        "limit tokens / s": limit,
        "of limit": pace / limit,
    }


def _active_bytes(model: PreTrainedModel) -> float:
    """Bytes of what takes part for one token: of the experts K of E, of everything else all."""
    config = model.config
    share = config.num_experts_per_tok / config.num_experts if isinstance(config, MoEConfig) else 1.0
    return sum(p.nbytes * (share if ".mlp.experts." in name else 1.0) for name, p in model.named_parameters())
