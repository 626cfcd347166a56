"""Training time of a mixture beside the dense model of equal active FLOPs: an FFN, the model, the whole step."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTBigCodeConfig

from benchmarks.registry import Result, Row, case
from moe_codegen import MoEConfig, MoEForCausalLM
from moe_codegen.modeling.flops import training_flops


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model's size, the experts, and how often to measure."""
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--num-experts", type=int, default=8, help="each half the dense FFN; two take a token")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)


@case("training", "training time of a mixture / the dense model's at equal active FLOPs (bar: 1.25)", add_options)
def run(options: argparse.Namespace) -> Result:
    """Time both in turns, so that what else the machine does falls on both."""
    torch.manual_seed(0)
    dense, mixture = _models(options)
    ids = torch.randint(0, dense.config.vocab_size, (options.sequences, options.length))
    x = torch.randn(options.sequences, options.length, options.hidden)
    flops = [training_flops(model, options.length) for model in (dense, mixture)]
    parts: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "FFN, forward and backward": (_ffn_pass(dense, x), _ffn_pass(mixture, x)),
        "model, forward and backward": (_pass(dense, ids), _pass(mixture, ids)),
        "step, with AdamW": (_step(dense, ids), _step(mixture, ids)),
    }
    rows = [_row(part, *pair, tokens=ids.numel(), repeats=options.repeats) for part, pair in parts.items()]
    return Result(
        rows, notes=[f"FLOPs a token, mixture / dense: {flops[1] / flops[0]:.3f}; the router makes the difference"]
    )


def _models(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    config = GPTBigCodeConfig(
        vocab_size=4096,
        n_positions=options.length,
        n_embd=options.hidden,
        n_layer=options.layers,
        n_head=options.hidden // 64,
        n_inner=4 * options.hidden,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    experts = MoEConfig.from_dense(
        config, num_experts=options.num_experts, num_experts_per_tok=2, moe_intermediate_size=2 * options.hidden
    )
    return AutoModelForCausalLM.from_config(config).train(), MoEForCausalLM(experts).train()


def _ffn_pass(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    ffn = model.transformer.h[0].mlp

    def once() -> None:
        ffn.zero_grad()
        ffn(x.requires_grad_()).sum().backward()

    return once


def _pass(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    def once() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return once


def _step(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward_and_backward = _pass(model, ids)

    def once() -> None:
        forward_and_backward()
        optimizer.step()

    return once


def _row(part: str, dense: Callable[[], None], mixture: Callable[[], None], *, tokens: int, repeats: int) -> Row:
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):  # the first only warms up
        for once, taken in zip((dense, mixture), seconds, strict=True):
            start = time.perf_counter()
            once()
            if repeat:
                taken.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return {
        "part": part,
        "dense tokens / s": tokens / statistics.median(seconds[0]),
        "mixture tokens / s": tokens / statistics.median(seconds[1]),
        "mixture / dense time": statistics.median(ratios),
        "of them least": min(ratios),
        "most": max(ratios),
    }
