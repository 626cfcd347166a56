"""One expert layer with weights of 16, 8 and 4 bits, beside torch's own quantised products for a CPU, and the limit."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.bandwidth import read_bandwidth
from benchmarks.gpu_clock import limits_of, quantiles_of
from benchmarks.registry import Result, Row, case
from benchmarks.shapes import SHAPES, LayerShape
from moe_codegen_kernels import expert_ffn, quantise_weight, quantised_expert_ffn
from moe_codegen_kernels.activations import activate
from moe_codegen_kernels.cpu import describe_cpu_path

BFLOAT16 = "bf16"
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The shape and the numbers of tokens."""
    parser.add_argument(
        "--shape", choices=[name for name, shape in SHAPES.items() if not shape.gated], default="santacoder"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 8, 32, 128, 512])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: up to 64 tokens as a CUDA graph"
    )


@case("quantised-layer", "an expert layer in bf16, int8 and int4, and torch's own int8 and int4 for a CPU", add_options)
def run(options: argparse.Namespace) -> Result:
    """Each layer in turn for each number of tokens; other experts are chosen each time, so none is in a cache."""
    shape, on_gpu = SHAPES[options.shape], options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        return Result([], notes=["--device cuda needs a CUDA GPU and sees none"])
    up, up_bias, down, down_bias, *_ = shape.weights(torch.bfloat16, options.device)
    for matrix in (up, down):
        matrix.copy_(torch.randn(matrix.shape[1:]) * matrix.shape[-1] ** -0.5)
    for bias in (up_bias, down_bias):
        bias.zero_()
    layers, expert_bytes = _layers(shape, up, up_bias, down, down_bias)
    bandwidth = limits_of("cuda", options.repeats).gigabytes * 1e9 if on_gpu else read_bandwidth()
    rows: list[Row] = []
    for tokens in options.tokens:
        measure = _measure_on_gpu if on_gpu else _measure
        touched, milliseconds = measure(shape, layers, tokens, options.repeats)
        row: Row = {"tokens": tokens, "experts touched": touched, f"{BFLOAT16} ms": milliseconds[BFLOAT16]}
        for name, taken in milliseconds.items():
            if name != BFLOAT16:
                row[f"{BFLOAT16} / {name}"] = milliseconds[BFLOAT16] / taken
            if name in expert_bytes and tokens <= 8:
                row[f"{name} of limit"] = touched * expert_bytes[name] / bandwidth / (taken / 1e3)
        rows.append(row)
    note = f"memory is read at {bandwidth / 1e9:.1f} GB/s; the limit is the bytes of the touched experts over that"
    return Result(rows, notes=[note] if on_gpu else [f"experts in 16 bits: {describe_cpu_path()}", note])


def _layers(
    shape: LayerShape, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor
) -> tuple[dict[str, Layer], dict[str, float]]:
    """Name -> layer, and name -> bytes of one expert's weights."""
    kind = {"activation": shape.activation, "gated": shape.gated}
    layers: dict[str, Layer] = {
        BFLOAT16: lambda x, ids, weights: expert_ffn(x, ids, weights, up, up_bias, down, down_bias, **kind)
    }
    expert_bytes = {BFLOAT16: (up[0].nbytes + down[0].nbytes) * 1.0}
    for bits, group in ((8, None), (4, 32), (4, 128)):
        stored = (*quantise_weight(up, bits, group), up_bias, *quantise_weight(down, bits, group), down_bias)
        name = f"int{bits}" if group in (None, 32) else f"int{bits} in {group}s"
        layers[name] = lambda x, ids, weights, stored=stored: quantised_expert_ffn(x, ids, weights, *stored, **kind)
        expert_bytes[name] = sum(stored[i][0].nbytes for i in (0, 1, 3, 4)) * 1.0
    if up.device.type == "cpu":
        layers["torch int8"], layers["torch int4"] = (
            _torch_layer(shape, _torch_products(w)) for w in ((up, down, 8), (up, down, 4))
        )
    return layers, expert_bytes


def _torch_products(weights: tuple[Tensor, Tensor, int]) -> list[Callable[[Tensor, int], Tensor]]:
    """x_MK, expert -> x_MK times the expert's matrix by torch's kernel for packed weights, whatever their values."""
    *matrices, bits = weights
    products = []
    for matrix in matrices:
        experts, n, k = matrix.shape
        if bits == 8:
            stored, scales = quantise_weight(matrix, 8)
            products.append(
                lambda x, e, q=stored, s=scales: torch.ops.aten._weight_int8pack_mm(x, q[e], s[e].flatten())
            )
        else:
            nibbles = torch.randint(0, 16, (n, k), dtype=torch.int32)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
            packed, scales = packed.repeat(experts, 1, 1), torch.rand(k // 32, n, 2).bfloat16()
            products.append(lambda x, e, q=packed, s=scales: torch.ops.aten._weight_int4pack_mm_for_cpu(x, q[e], 32, s))
    return products


def _torch_layer(shape: LayerShape, products: list[Callable[[Tensor, int], Tensor]]) -> Layer:
    """An expert at a time, as a model without this library's op would run them."""
    up, down = products

    def layer(hidden_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        out_TD = torch.zeros_like(hidden_TD, dtype=torch.float32)
        for expert in ids_TK.unique().tolist():
            tokens_M, choices_M = torch.where(ids_TK == expert)
            y_MD = down(activate(shape.activation, up(hidden_TD[tokens_M], expert)), expert)
            out_TD.index_add_(0, tokens_M, y_MD * weights_TK[tokens_M, choices_M, None])
        return out_TD.to(hidden_TD.dtype)

    return layer


def _measure(shape: LayerShape, layers: dict[str, Layer], tokens: int, repeats: int) -> tuple[int, dict[str, float]]:
    """Experts touched, and the median milliseconds of each layer; the first round only warms up."""
    hidden_TD = torch.randn(tokens, shape.model).bfloat16()
    ids_TK, weights_TK = shape.routing(tokens, "balanced", "cpu")
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(repeats + 1):
        rotated_TK = (ids_TK + repeat * shape.top_k) % shape.experts
        for name, layer in layers.items():
            if name.startswith("torch") and tokens > 32:
                continue  # they fall behind further with every row
            start = time.perf_counter()
            layer(hidden_TD, rotated_TK, weights_TK)
            taken[name].append(1e3 * (time.perf_counter() - start))
    return ids_TK.unique().numel(), {name: statistics.median(times[1:]) for name, times in taken.items() if times}


def _measure_on_gpu(
    shape: LayerShape, layers: dict[str, Layer], tokens: int, repeats: int
) -> tuple[int, dict[str, float]]:
    """As `_measure`; what is read anew each time is told by other bytes in L2 before each call."""
    routed = torch.randn(tokens, shape.model, device="cuda").bfloat16(), *shape.routing(tokens, "balanced", "cuda")
    graph = tokens <= 64  # more are made wide, for which the host asks which experts were chosen
    with torch.no_grad():
        milliseconds = {
            name: quantiles_of(lambda layer=layer: layer(*routed), repeats, "cuda", graph).p50
            for name, layer in layers.items()
        }
    return routed[1].unique().numel(), milliseconds
