"""One expert layer, ours beside what else computes it: forward, training, decode, and the memory training keeps."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward

from benchmarks.registry import Result, Row, case
from benchmarks.shapes import SHAPES, LayerShape
from moe_codegen_kernels import expert_ffn
from moe_codegen_kernels.activations import activate

Run = Callable[[Tensor], Tensor]
DENSE = "dense of equal FLOPs"  # the yardstick: right by construction, and another function than the layer


@dataclass
class Layer:
    """A shape with its tensors on a device; biases are zero, so that implementations without them agree."""

    shape: LayerShape
    hidden_TD: Tensor
    ids_TK: Tensor
    weights_TK: Tensor
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @property
    def parameters(self) -> list[Tensor]:
        """What training computes gradients of, besides the input."""
        return [x for x in (self.up, self.up_bias, self.down, self.down_bias) if x is not None]


def make_layer(shape: LayerShape, tokens: int, load: str, device: str, dtype: torch.dtype) -> Layer:
    """Random weights of unit gain, random input."""
    up, up_bias, down, down_bias = shape.weights(dtype, device)
    for matrix in (up, down):
        matrix.normal_(std=matrix.shape[-1] ** -0.5)
    for bias in (up_bias, down_bias):
        if bias is not None:
            bias.zero_()
    hidden_TD = torch.randn(tokens, shape.model, dtype=dtype, device=device)
    return Layer(shape, hidden_TD, *shape.routing(tokens, load, device), up, up_bias, down, down_bias)


def ours(layer: Layer, recompute: bool = False) -> Run:
    """The op of this project."""
    rest = (layer.ids_TK, layer.weights_TK, layer.up, layer.up_bias, layer.down, layer.down_bias)
    kind = {"activation": layer.shape.activation, "gated": layer.shape.gated}
    return lambda hidden_TD: expert_ffn(hidden_TD, *rest, **kind, recompute=recompute)


def dense(layer: Layer) -> Run:
    """The same FLOPs as one expert over all routed rows: what the vendor's library reaches without routing."""
    top_k = layer.shape.top_k
    one = [None if x is None else x[0] for x in (layer.up, layer.up_bias, layer.down, layer.down_bias)]
    return lambda hidden_TD: _ffn(hidden_TD.repeat(top_k, 1), *one, layer.shape)


def loop(layer: Layer) -> Run:
    """An expert at a time through the vendor's library; which rows go where is known beforehand, at no cost."""
    rows = [torch.where(layer.ids_TK == expert) for expert in range(layer.shape.experts)]

    def run(hidden_TD: Tensor) -> Tensor:
        out_TD = torch.zeros_like(hidden_TD)
        for expert, (tokens_M, choices_M) in enumerate(rows):
            if len(tokens_M):
                weights = [
                    None if x is None else x[expert] for x in (layer.up, layer.up_bias, layer.down, layer.down_bias)
                ]
                y_MD = _ffn(hidden_TD[tokens_M], *weights, layer.shape)
                weighed_MD = y_MD * layer.weights_TK[tokens_M, choices_M, None]
                out_TD = out_TD.index_add(0, tokens_M, weighed_MD.to(out_TD.dtype))
        return out_TD

    return run


def transformers_implementation(forward: Callable[..., Tensor]) -> Callable[[Layer], Run]:
    """One of transformers' own, given what it reads from an experts module."""

    def make(layer: Layer) -> Run:
        shape, prefix = layer.shape, "gate_up_proj" if layer.shape.gated else "up_proj"
        experts: Any = SimpleNamespace(
            num_experts=shape.experts, has_gate=shape.gated, has_bias=shape.bias, is_transposed=False,
            is_concatenated=True, has_post_expert_norm=False, _is_expert_parallel=False,
            down_proj=layer.down, down_proj_bias=layer.down_bias,
            act_fn=lambda x: activate(shape.activation, x),
        )  # fmt: skip
        setattr(experts, prefix, layer.up)
        setattr(experts, f"{prefix}_bias", layer.up_bias)
        experts._apply_gate = lambda h: experts.act_fn(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1]
        return lambda hidden_TD: forward(experts, hidden_TD, layer.ids_TK, layer.weights_TK)

    return make


def scattermoe(layer: Layer) -> Run:
    """ScatterMoE's two parallel-expert products, which have no bias."""
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

    order, counts, offsets = flatten_sort_count(layer.ids_TK, num_experts=layer.shape.experts)
    top_k = layer.shape.top_k

    def run(hidden_TD: Tensor) -> Tensor:
        h_RG = parallel_linear(hidden_TD, layer.up.mT, top_k, order, counts, offsets, grouped_out=True)
        a_RF = _activate(h_RG, layer.shape)
        gates_TK = layer.weights_TK.to(hidden_TD.dtype)
        return parallel_linear(a_RF, layer.down.mT, 1, order, counts, offsets, grouped_in=True, gates=gates_TK)

    return run


CONTENDERS: dict[str, Callable[[Layer], Run]] = {
    "moe_codegen": ours,
    DENSE: dense,
    "loop over experts": loop,
    "transformers grouped_mm": transformers_implementation(grouped_mm_experts_forward),
    "transformers batched_mm": transformers_implementation(batched_mm_experts_forward),
    "ScatterMoE": scattermoe,
}
BATCHED_LIMIT = 64  # batched_mm copies the expert's weights for every row


def _activate(h_MG: Tensor, shape: LayerShape) -> Tensor:
    if not shape.gated:
        return activate(shape.activation, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    return activate(shape.activation, gate_MF) * value_MF


def _ffn(
    x_MD: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, shape: LayerShape
) -> Tensor:
    return F.linear(_activate(F.linear(x_MD, up, up_bias), shape), down, down_bias)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to run on what."""
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--loads", nargs="+", choices=["balanced", "zipf"], default=["balanced", "zipf"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--experts", type=int, help="fewer experts and a sixteenth of the widths: for a small machine")


@case("layer-forward", "one expert layer forward, beside its peers", add_options)
def forward(options: argparse.Namespace) -> Result:
    """Without gradients."""
    return _compare(options, options.tokens or [4096, 8192, 16384, 32768], backward=False)


@case("layer-training", "one expert layer forward and backward, beside its peers", add_options)
def training(options: argparse.Namespace) -> Result:
    """Gradients of the input and every weight; peak memory too."""
    return _compare(options, options.tokens or [4096, 8192, 16384], backward=True)


@case("layer-decode", "one expert layer for few tokens, in a CUDA graph, beside its peers", add_options)
def decode(options: argparse.Namespace) -> Result:
    """The limit is the bandwidth at which touched experts' weights can be read."""
    return _compare(options, options.tokens or [1, 2, 4, 8, 16, 32, 64], backward=False, graph=True)


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Which layers, and where: what is kept does not depend on the device."""
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["santacoder", "phi-2"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu")


@case("layer-memory", "bytes of activations one expert layer keeps for its backward pass", add_memory_options)
def memory(options: argparse.Namespace) -> Result:
    """Counted from the tensors autograd saves, parameters apart."""
    contenders = {
        "moe_codegen": ours,
        "moe_codegen, recompute": functools.partial(ours, recompute=True),
        "loop over experts": loop,
        "transformers grouped_mm": CONTENDERS["transformers grouped_mm"],
    }
    rows: list[Row] = []
    for name in options.shapes:
        layer = make_layer(SHAPES[name], options.tokens, "balanced", options.device, torch.bfloat16)
        for contender, make in contenders.items():
            _, kept = step_of(layer, make(layer), backward=True)
            rows.append({"shape": name, "contender": contender, "KiB/token": kept / options.tokens / 1024})
    return Result(rows)


def _compare(options: argparse.Namespace, tokens: list[int], backward: bool, graph: bool = False) -> Result:
    if options.device == "cuda" and not torch.cuda.is_available():
        return Result([], notes=["needs a CUDA GPU and sees none; --device cpu --experts 4 tries the harness itself"])
    rows: list[Row] = []
    for name in options.shapes:
        shape = SHAPES[name]
        if options.experts:
            small = {"model": shape.model // 16, "hidden": shape.hidden // 16, "top_k": min(shape.top_k, 2)}
            shape = LayerShape(**vars(shape) | small | {"experts": options.experts})
        for load in options.loads:
            for count in tokens:
                layer = make_layer(shape, count, load, options.device, torch.bfloat16)
                rows += _rows(layer, load, options, backward, graph and options.device == "cuda")
                del layer
    pictures = [_draw(rows, options.out)] if options.out and rows else []
    return Result(rows, notes=["times in ms; a contender whose result is wrong is not timed"], pictures=pictures)


def _rows(layer: Layer, load: str, options: argparse.Namespace, backward: bool, graph: bool) -> list[Row]:
    shape, tokens = layer.shape, layer.hidden_TD.shape[0]
    flops = shape.forward_flops(tokens) * (3 if backward else 1)
    touched = layer.ids_TK.unique().numel()
    weight_bytes = touched * (layer.up[0].numel() + layer.down[0].numel()) * layer.up.element_size()
    truth_TD = loop(layer)(layer.hidden_TD).float()
    rows: list[Row] = []
    for name, make in CONTENDERS.items():
        if name == "transformers batched_mm" and tokens > BATCHED_LIMIT:
            continue
        row: Row = {"shape": shape.name, "load": load, "tokens": tokens, "contender": name}
        try:
            run = make(layer)
            out_TD = run(layer.hidden_TD).float()
        except (ImportError, RuntimeError) as failure:
            rows.append(row | {"p50 ms": f"not run: {type(failure).__name__}"})
            continue
        if name != DENSE and (error := ((out_TD - truth_TD).norm() / truth_TD.norm()).item()) > 0.02:
            rows.append(row | {"p50 ms": f"refused: relative error {error:.2g}"})
            continue
        step, kept = step_of(layer, run, backward)
        p20, p50, p80 = _time(step, options.repeats, options.device, graph)
        row |= {"p20 ms": p20, "p50 ms": p50, "p80 ms": p80, "TFLOP/s": flops / p50 / 1e9}
        row |= {"weights GB/s": weight_bytes / p50 / 1e6, "kept KiB/token": kept / tokens / 1024 if backward else ""}
        rows.append(row)
    dense_row = next((r for r in rows if r["contender"] == DENSE and "TFLOP/s" in r), None)
    for row in rows:
        if dense_row and "TFLOP/s" in row:
            row["% of dense"] = 100 * row["TFLOP/s"] / dense_row["TFLOP/s"]
    return rows


def step_of(layer: Layer, run: Run, backward: bool) -> tuple[Callable[[], Any], int]:
    """One repetition, and the bytes training keeps between forward and backward besides the parameters."""
    if not backward:
        return torch.no_grad()(lambda: run(layer.hidden_TD)), 0
    inputs = [x.requires_grad_() for x in (layer.hidden_TD, *layer.parameters)]
    parameters = {x.data_ptr() for x in layer.parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out_TD = run(layer.hidden_TD)
    grad_TD = torch.randn_like(out_TD)
    return lambda: torch.autograd.grad(run(layer.hidden_TD), inputs, grad_TD), sum(kept.values())


def _time(step: Callable[[], Any], repeats: int, device: str, graph: bool) -> tuple[float, float, float]:
    """p20, p50, p80 in ms, the L2 cache written over before each repetition on a GPU."""
    for _ in range(3):
        step()
    times = []
    if device != "cuda":
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
    else:
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()
            step = captured.replay
        flush = torch.empty(256 * 2**20, dtype=torch.int8, device=device)
        for _ in range(repeats):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    p20, p50, p80 = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
    return p20, p50, p80


def _draw(rows: list[Row], folder: Path) -> Path:
    """TFLOP/s over tokens, one panel a shape, balanced load."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = Figure(figsize=(5 * len(shapes), 4), layout="constrained")
    for panel, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        for contender in CONTENDERS:
            points = [
                (row["tokens"], row["TFLOP/s"])
                for row in rows
                if row["shape"] == shape and row["contender"] == contender and "TFLOP/s" in row
            ]
            if points:
                panel.plot(*zip(*points, strict=True), "o-", label=contender)
        panel.set(title=shape, xlabel="tokens", ylabel="TFLOP/s", xscale="log", ylim=(0, None))
    panel.legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "expert-layer.png"
    figure.savefig(path, dpi=120)
    return path
