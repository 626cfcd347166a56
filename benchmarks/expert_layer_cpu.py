"""One expert layer on the CPU, plain and packed, beside its peers and the limits of the machine, all in one run.

limit = max(FLOPs / GEMM peak, bytes of the touched experts / streaming bandwidth)
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bandwidth import read_bandwidth
from benchmarks.contenders import CONTENDERS, DENSE, OURS, Contender, Layer, dense, loop, make_layer, ours
from benchmarks.expert_layer import step_of
from benchmarks.registry import Result, Row, case
from benchmarks.shapes import SHAPES
from moe_codegen.moe import Experts
from moe_codegen_kernels import describe_cpu_path, pack_matrices, packed_expert_ffn
from moe_codegen_kernels.cpu.compiled import panel_width
from moe_codegen_kernels.cpu.products import product

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ACT2FN_NAME = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu", "relu": "relu"}  # transformers'
PEAK_ROWS = 2048
WRONG = 0.02  # relative error from which a contender is not timed
PEERS = ("transformers grouped_mm", "transformers eager", "sorted loop")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to run on what."""
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 8, 32, 128, 512, 1024, 2048])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--shape", choices=SHAPES, default="santacoder")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each contender; at least one run is measured")


@case("layer-cpu", "one expert layer on the CPU, beside its peers and the machine's limits", add_options)
@torch.no_grad()
def run(options: argparse.Namespace) -> Result:
    """The best of the runs that fit into the time; the first checks the result."""
    peaks = {name: _peak(DTYPES[name], options.seconds) for name in options.dtypes}
    rows: list[Row] = []
    bandwidths: list[float] = []  # again for each number of tokens: neighbours on the same memory come and go
    for name in options.dtypes:
        layer = make_layer(SHAPES[options.shape], 1, "balanced", "cpu", DTYPES[name])
        packed = _packed(layer) if panel_width() else None
        for tokens in options.tokens:
            for each in filter(None, (layer, packed)):
                each.hidden_TD = torch.randn(tokens, layer.shape.model).to(DTYPES[name])
                each.ids_TK, each.weights_TK = layer.shape.routing(tokens, "balanced", "cpu")
            if packed is not None:
                packed.hidden_TD = layer.hidden_TD
            bandwidths.append(read_bandwidth())
            rows += _rows(name, layer, packed, options.seconds, bandwidths[-1], peaks[name])
    notes = [
        describe_cpu_path(),
        f"streaming bandwidth {min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f} GB/s, GEMM peak "
        f"{', '.join(f'{peak / 1e9:.0f} GFLOP/s {name}' for name, peak in peaks.items())}, "
        f"{torch.get_num_threads()} threads",
        "best of the runs, in ms; `of limit`: the limit's time over the measured one",
    ]
    return Result(rows, notes, [_draw(rows, options.out)] if options.out else [])


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What to run on what."""
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--shape", choices=SHAPES, default="santacoder")
    parser.add_argument("--seconds", type=float, default=4, help="for each contender; at least one run is measured")


@case(
    "layer-cpu-training", "one expert layer on the CPU forward and backward, beside a dense FFN", add_training_options
)
def train(options: argparse.Namespace) -> Result:
    """Gradients of the input and of every weight, beside one dense FFN of equal FLOPs; the best of the runs."""
    rows: list[Row] = []
    for name in options.dtypes:
        for tokens in options.tokens:
            layer = make_layer(SHAPES[options.shape], tokens, "balanced", "cpu", DTYPES[name])
            times = {}
            for contender, make in ((OURS, ours), (DENSE, dense)):
                step, _ = step_of(make(layer), backward=True)
                times[contender] = _best(step, options.seconds)[0]
            flops = 3 * layer.shape.forward_flops(tokens)
            rows += [
                {"dtype": name, "tokens": tokens, "contender": contender, "ms": 1e3 * seconds}
                | {"GFLOP/s": flops / seconds / 1e9, "/ dense": seconds / times[DENSE]}
                for contender, seconds in times.items()
            ]
    return Result(rows, notes=[describe_cpu_path()])


def _rows(name: str, layer: Layer, packed: Layer | None, seconds: float, bandwidth: float, peak: float) -> list[Row]:
    shape, tokens = layer.shape, layer.hidden_TD.shape[0]
    touched = layer.ids_TK.unique().numel() * (layer.up[0].numel() + layer.down[0].numel()) * layer.up.itemsize
    limit = max(shape.forward_flops(tokens) / peak, touched / bandwidth)
    contenders = {OURS: ours(layer)}
    if packed is not None:
        contenders |= {f"{OURS}, packed": _run_packed(packed), f"{DENSE}, packed": _dense_packed(packed)}
    contenders |= {
        DENSE: dense(layer),
        "transformers grouped_mm": CONTENDERS["transformers grouped_mm"](layer),
        "transformers eager": _eager(layer),
        "sorted loop": loop(layer),
    }
    truth_TD: Tensor | None = None
    rows: list[Row] = []
    for contender, way in contenders.items():
        best, out_TD = _best(lambda way=way: way.run(way.hidden), seconds)
        row: Row = {"dtype": name, "tokens": tokens, "contender": contender}
        if not contender.startswith(DENSE):
            truth_TD = _truth(layer) if truth_TD is None else truth_TD
            if (error := ((out_TD.float() - truth_TD).norm() / truth_TD.norm()).item()) > WRONG:
                rows.append(row | {"ms": f"refused: relative error {error:.2g}"})
                continue
        rows.append(row | {"ms": 1e3 * best, "of limit": limit / best})
    times = {row["contender"]: row["ms"] for row in rows if not isinstance(row["ms"], str)}
    peers = [times[peer] for peer in PEERS if peer in times]
    for row in rows:
        if row["contender"] in times:
            row["/ dense"] = row["ms"] / times[DENSE]
            row["/ best of transformers"] = row["ms"] / min(peers)
    return rows


def _truth(layer: Layer) -> Tensor:
    """In float32, an expert at a time, weights widened for the moment: torch's own products and nothing of ours."""
    shape, x_TD = layer.shape, layer.hidden_TD.float()
    out_TD = torch.zeros_like(x_TD)
    for expert in layer.ids_TK.unique().tolist():
        tokens_M, choices_M = torch.where(layer.ids_TK == expert)
        matrices = (layer.up, layer.up_bias, layer.down, layer.down_bias)
        one = [None if x is None else x[expert : expert + 1].float() for x in matrices]
        everyone_M1 = torch.zeros(len(tokens_M), 1, dtype=torch.int64)
        alone = Layer(shape, x_TD[tokens_M], everyone_M1, torch.ones(len(tokens_M), 1), *one)
        y_MD = loop(_with_experts(alone, 1)).run(alone.hidden_TD)
        out_TD.index_add_(0, tokens_M, y_MD * layer.weights_TK[tokens_M, choices_M, None])
    return out_TD


def _with_experts(layer: Layer, experts: int) -> Layer:
    """The layer with another number of experts in its shape."""
    return replace(layer, shape=replace(layer.shape, experts=experts))


def _eager(layer: Layer) -> Contender:
    """`experts_implementation="eager"`, the loop of modelling code."""
    shape = layer.shape
    config: Any = SimpleNamespace(
        num_experts=shape.experts,
        hidden_size=shape.model,
        moe_intermediate_size=shape.hidden,
        _experts_implementation="eager",
    )
    with torch.device("meta"):
        experts = Experts(config, activation=ACT2FN_NAME[shape.activation], gated=shape.gated, bias=shape.bias)
    names = [name for name, _ in experts.named_parameters()]
    weights = (layer.up, layer.up_bias, layer.down, layer.down_bias) if shape.bias else (layer.up, layer.down)
    for name, weight in zip(names, weights, strict=True):
        setattr(experts, name, nn.Parameter(weight, requires_grad=False))
    return Contender(lambda x_TD: experts(x_TD, layer.ids_TK, layer.weights_TK), layer.hidden_TD, {}, None)


def _packed(layer: Layer) -> Layer:
    return replace(layer, up=pack_matrices(layer.up), down=pack_matrices(layer.down))


def _run_packed(layer: Layer) -> Contender:
    rest = (layer.ids_TK, layer.weights_TK, layer.up, layer.up_bias, layer.down, layer.down_bias)
    kind = {"activation": layer.shape.activation, "gated": layer.shape.gated}
    return Contender(lambda x_TD: packed_expert_ffn(x_TD, *rest, **kind), layer.hidden_TD, {}, None)


def _dense_packed(layer: Layer) -> Contender:
    """One expert for all routed rows."""
    top_k = layer.shape.top_k
    one = [None if x is None else x[:1] for x in (layer.up, layer.up_bias, layer.down, layer.down_bias)]
    ids_R1 = torch.zeros(layer.hidden_TD.shape[0] * top_k, 1, dtype=torch.int64)
    weights_R1 = torch.ones(ids_R1.shape)
    kind = {"activation": layer.shape.activation, "gated": layer.shape.gated}
    hidden_RD = layer.hidden_TD.repeat(top_k, 1)
    return Contender(lambda x_RD: packed_expert_ffn(x_RD, ids_R1, weights_R1, *one, **kind), hidden_RD, {}, None)


def _best(step: Callable[[], Any], seconds: float) -> tuple[float, Any]:
    """Seconds of the fastest run, and the first one's result; a run of over a second needs no second one."""
    times: list[float] = []
    out: Any = None
    end = time.perf_counter() + seconds
    while out is None or time.perf_counter() < end or (len(times) == 1 and times[0] < 1):
        start = time.perf_counter()
        result = step()
        times.append(time.perf_counter() - start)
        out = result if out is None else out
    return min(times), out


def _peak(dtype: torch.dtype, seconds: float) -> float:
    """FLOPs per second of the fastest product of 2048 rows with an 8192 x 2048 matrix, of `dtype` or widened before."""
    mkldnn, products = torch.ops.mkldnn, []
    native = {torch.float32: lambda: True, torch.bfloat16: mkldnn._is_mkldnn_bf16_supported}
    native[torch.float16] = mkldnn._is_mkldnn_fp16_supported
    for kind in {dtype, torch.float32}:
        x_MK, matrix_NK = torch.randn(PEAK_ROWS, 2048).to(kind), torch.randn(8192, 2048).to(kind)
        if panel_width():
            offsets_E = torch.tensor([0, PEAK_ROWS], dtype=torch.int32)
            products.append(functools.partial(product, x_MK.float(), pack_matrices(matrix_NK[None]), None, offsets_E))
        if torch.backends.mkldnn.is_available() and native[kind]():
            reordered = mkldnn._reorder_linear_weight(matrix_NK, PEAK_ROWS)
            products.append(functools.partial(mkldnn._linear_pointwise, x_MK, reordered, None, "none", [], ""))
            products.append(functools.partial(torch.mm, x_MK, matrix_NK.T))
    if not products:  # neither the compiled kernel nor mkldnn
        products.append(functools.partial(torch.mm, torch.randn(PEAK_ROWS, 2048), torch.randn(2048, 8192)))
    flops = 2 * PEAK_ROWS * 2048 * 8192
    return flops / min(_best(each, max(seconds, 2.0))[0] for each in products)


def _draw(rows: list[Row], folder: Path) -> Path:
    """Fraction of the limit over tokens, one panel a dtype."""
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    tokens = sorted({row["tokens"] for row in rows})
    figure = Figure(figsize=(6 * len(dtypes), 4.5), layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        for contender in dict.fromkeys(row["contender"] for row in rows):
            points = [
                (row["tokens"], row["of limit"])
                for row in rows
                if row["dtype"] == dtype and row["contender"] == contender and "of limit" in row
            ]
            panel.plot(*zip(*points, strict=True), "o-", label=contender)
        panel.set(title=dtype, xlabel="tokens", ylabel="fraction of the limit", ylim=(0, 1.15))
        panel.set_xscale("log", base=2)
        panel.set_xticks(tokens, tokens)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "layer-cpu.png"
    figure.savefig(path, dpi=120)
    return path
