"""`moe-codegen tune`: find faster kernel tiles for this GPU and keep them in the user's cache."""

import time
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.console import Console

from moe_codegen.errors import ConfigError
from moe_codegen.reporting import table
from moe_codegen_kernels.tiles import cache_path, gpu_of
from moe_codegen_kernels.trials import LayerSize, compile_pool
from moe_codegen_kernels.tune import tune as find_tiles

Option = typer.Option


def tune(
    model: Annotated[int, Option(help="Width of the model (D).")] = 2048,
    hidden: Annotated[int, Option(help="Hidden width of one expert (F).")] = 8192,
    num_experts: Annotated[int, Option(help="Experts in a layer.")] = 8,
    top_k: Annotated[int, Option(help="Experts that take each token.")] = 2,
    gated: Annotated[bool, Option("--gated", help="Experts have a gate, as in SwiGLU.")] = False,
    dtype: Annotated[str, Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    tokens: Annotated[
        list[int] | None, Option(help="Tokens a call; repeat for more. [default: 512, 4096, 16384]")
    ] = None,
    minutes: Annotated[float, Option(help="Time to search in; what is best by then is kept.")] = 10,
) -> None:
    """Time the expert kernels with other tiles on this GPU, and use the fastest from now on.

    Each number of tokens is kept when it is done; what an earlier search finished is not searched again.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "moe-codegen tune times kernels on a CUDA GPU and sees none; run it on the machine that trains"
        )
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ConfigError(f"--dtype {dtype} is not known; choose bfloat16, float16 or float32")
    gpu = gpu_of(torch.device("cuda", torch.cuda.current_device()))
    size = LayerSize(model, hidden, num_experts, top_k, gated, getattr(torch, dtype))
    console = Console()
    counts = tokens or [512, 4096, 16384]
    deadline = time.monotonic() + 60 * minutes
    rows = []
    with compile_pool() as pool:
        for position, count in enumerate(counts):
            share = (deadline - time.monotonic()) / (len(counts) - position)
            findings = find_tiles(size, count, gpu, pool, share)
            if not findings:
                console.print(f"{count} tokens: searched before")
            for found in findings:
                tile = " ".join(f"{name}={value}" for name, value in asdict(found.after).items())
                rows.append((count, found.gemm, round(found.before_ms, 3), round(found.after_ms, 3), tile))
    console.print(table(("tokens", "gemm", "before, ms", "after, ms", "tile"), rows))
    console.print(f"kept in {cache_path(gpu)}; delete it to search again")
