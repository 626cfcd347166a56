"""What launching one expert layer costs the host, where there is no GPU to launch on: not a GPU's timing."""

import argparse

import torch

from benchmarks.gpu_clock import host_microseconds
from benchmarks.registry import Result, Row, case
from benchmarks.shapes import SHAPES

CALLS = {"forward": (4096, False), "forward and backward": (4096, True), "decode": (8, False)}  # tokens, trains


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which layers, launched as if on which GPU."""
    parser.add_argument("--architecture", default="sm_90")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["santacoder", "mixtral-8x7b"])
    parser.add_argument("--repeats", type=int, default=200)


@case("layer-host", "host time to launch one expert layer, by a driver that launches nothing", add_options)
def run(options: argparse.Namespace) -> Result:
    """The launchers and Triton's own dispatch, from the call to the driver's door."""
    try:
        import triton

        from benchmarks.ahead_of_time import compile_layer, layer_step, without_device
    except ModuleNotFoundError:
        return Result([], notes=["needs triton: pip install 'moe-codegen[gpu]'"])
    rows: list[Row] = []
    for name in options.shapes:
        for call, (tokens, trains) in CALLS.items():
            layer = (options.architecture, SHAPES[name], tokens, torch.bfloat16, trains)
            with without_device(options.architecture, checks=False):
                step = layer_step(*layer)
                step()  # compiles
                microseconds = host_microseconds(step, options.repeats)
            launches = len(compile_layer(*layer).launches)
            rows.append({"shape": name, "call": call, "launches": launches, "host us": microseconds})
    return Result(
        rows,
        notes=[
            "median; torch's allocator is the CPU's, and the driver's own part (cuTensorMapEncodeTiled, "
            "cuLaunchKernelEx) is missing: on a GPU, the column `host us` of layer-forward measures all of it",
            f"triton {triton.__version__}, launched as if on {options.architecture}",
        ],
    )
