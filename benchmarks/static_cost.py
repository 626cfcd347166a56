"""What the compiler's output says about every main loop, where there is no GPU to ask. Not a timing."""

import argparse

import torch

from benchmarks.registry import Result, case
from benchmarks.shapes import SHAPES

GEMMS = ("up_kernel", "linear_kernel", "down_gradient_kernel", "ragged_k_kernel")
DECODE = ("decode_up_kernel", "decode_down_kernel")
CALLS = [(16384, 16, GEMMS), *((tokens, bits, DECODE) for bits in (16, 8, 4) for tokens in (8, 32, 64))]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Architectures and shapes to compile for."""
    parser.add_argument("--architectures", nargs="+", default=["sm_100", "sm_90", "sm_80"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["santacoder", "mixtral-8x7b"])


@case(
    "kernel-static-cost", "instructions, registers and shared memory of every GEMM's main loop, compiled", add_options
)
def run(options: argparse.Namespace) -> Result:
    """Compile a layer of 16384 tokens in training, and of 8, 32 and 64 in decode with each width; read their loops."""
    try:
        import triton

        from benchmarks.ahead_of_time import (
            BYTES_PER_CLOCK,
            compile_layer,
            compile_quantised_layer,
            constant_of,
            main_loop,
        )
    except ModuleNotFoundError:
        return Result([], notes=["needs triton: pip install 'moe-codegen[gpu]'"])
    rows = []
    for architecture in options.architectures:
        for name in options.shapes:
            for tokens, bits, kernels in CALLS:
                if bits < 16:
                    recorder = compile_quantised_layer(architecture, SHAPES[name], tokens, torch.bfloat16, bits)
                else:
                    recorder = compile_layer(architecture, SHAPES[name], tokens, torch.bfloat16, kernels == GEMMS)
                seen = set()
                for kernel in recorder.kernels.values():
                    if kernel.metadata.name not in kernels:
                        continue
                    loop = main_loop(kernel)
                    if loop in seen:
                        continue
                    seen.add(loop)
                    if kernels == GEMMS:
                        fraction = loop.issue_fraction(architecture)
                    else:
                        matrices = 2 if loop.kernel == "decode_up_kernel" and SHAPES[name].gated else 1
                        weights = matrices * constant_of(kernel, "BLOCK_N") * constant_of(kernel, "BLOCK_K")
                        fraction = loop.issue_clocks / (weights * bits / 8 / BYTES_PER_CLOCK[architecture])
                    rows.append(
                        {
                            "architecture": architecture,
                            "shape": name,
                            "tokens": tokens,
                            "weight bits": bits,
                            "kernel": loop.kernel.removesuffix("_kernel"),
                            "tensor core": loop.tensor_core,
                            "issue fraction": round(fraction, 3),
                            "instructions": loop.instructions,
                            "async loads": loop.copies,
                            "registers": loop.registers,
                            "spilled, loop": loop.local,
                            "stack, bytes": loop.stack,
                            "shared, bytes": loop.shared,
                        }
                    )
    return Result(
        rows,
        notes=[
            "issue fraction = instructions x warps / 4 schedulers, over the clocks the tensor cores need for the "
            "loop's products; below 1 the tensor cores are the limit. Of decode: over the clocks in which memory "
            "brings the weights that the loop reads. Read from machine code: nothing was timed.",
            "on sm_100 one thread issues the products for all: counted is the loop of its warp, as if all walked it",
            f"triton {triton.__version__}, bf16",
        ],
    )
