"""An expert layer of transformers whose gate is its own (gpt-oss) on the CPU, by our kernels and by transformers'."""

import argparse
import statistics
import time

import torch
from torch import Tensor
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from benchmarks.registry import Result, Row, case
from moe_codegen.moe.implementation import NAME, register_experts_implementation
from moe_codegen_kernels import describe_cpu_path

PEERS = {"forward": ("grouped_mm", "eager"), "training": ("grouped_mm",)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Numbers of tokens, dtypes, and the size."""
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--experts", type=int, default=8, help="gpt-oss-20b has 32; each token takes four")
    parser.add_argument("--size", type=int, default=2880, help="model and hidden; gpt-oss has 2880")
    parser.add_argument("--repeats", type=int, default=7)


@case("transformers-experts", "gpt-oss's experts on the CPU, by our kernels and by transformers' own", add_options)
def run(options: argparse.Namespace) -> Result:
    """Each implementation in turn, forward, and in training with backward, once its result is that of eager."""
    register_experts_implementation()
    config = GptOssConfig(hidden_size=options.size, intermediate_size=options.size, num_local_experts=options.experts)
    rows: list[Row] = []
    for dtype in options.dtypes:
        experts = GptOssExperts(config).to(DTYPES[dtype])
        for parameter in experts.parameters():
            torch.nn.init.normal_(parameter, std=options.size**-0.5)
        for tokens in options.tokens:
            hidden_TD = torch.randn(tokens, options.size, dtype=DTYPES[dtype], requires_grad=True)
            weights_TK, ids_TK = torch.rand(tokens, options.experts).topk(config.num_experts_per_tok)
            routed = hidden_TD, ids_TK, weights_TK.to(DTYPES[dtype])
            _check(experts, routed)
            row: Row = {"dtype": dtype, "tokens": tokens}
            for name, peers in PEERS.items():
                milliseconds = _measure(experts, routed, (NAME, *peers), name == "training", options.repeats)
                row[f"{name}, ms"] = milliseconds[NAME]
                row |= {f"{peer} / ours, {name}": milliseconds[peer] / milliseconds[NAME] for peer in peers}
            rows.append(row)
    return Result(rows, notes=[f"ours: {describe_cpu_path()}"])


def _check(experts: GptOssExperts, routed: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        ours_TD, eager_TD = (_set(experts, name)(*routed).float() for name in (NAME, "eager"))
    error = ((ours_TD - eager_TD).norm() / eager_TD.norm()).item()
    if not error < 1e-2:
        raise RuntimeError(f"ours differs from eager by {error:.1e}, relatively; it is not timed")


def _measure(
    experts: GptOssExperts, routed: tuple[Tensor, ...], names: tuple[str, ...], trains: bool, repeats: int
) -> dict[str, float]:
    """Median milliseconds of each; the first round only warms up."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats + 1):
        for name, times in taken.items():
            _set(experts, name)
            start = time.perf_counter()
            with torch.set_grad_enabled(trains):
                out_TD = experts(*routed)
                if trains:
                    torch.autograd.grad(out_TD.sum(), [routed[0], *experts.parameters()])
            times.append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def _set(experts: GptOssExperts, implementation: str) -> GptOssExperts:
    experts.config._experts_implementation = implementation
    return experts
