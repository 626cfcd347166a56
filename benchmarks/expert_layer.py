"""One expert layer, ours beside what else computes it: forward, training, decode, and the memory training keeps."""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import CONTENDERS, DENSE, LOOP, OURS, Contender, Layer, loop, make_layer, ours
from benchmarks.gpu_clock import Limits, host_microseconds, limits_of, peak_bytes, quantiles_of
from benchmarks.registry import Result, Row, case
from benchmarks.shapes import SHAPES, LayerShape

BATCHED_LIMIT = 64  # transformers' batched_mm copies the expert's weights for every row
NOT_FOR_GRAPHS = {"MegaBlocks"}  # asks the device for its counts
WRONG = 0.02  # relative error from which a contender is not timed
REASON = "reason"  # of a row that was not run: goes into the notes


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
    """Gradients of the input, the routing weights and every parameter; peak memory too."""
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
        OURS: ours,
        f"{OURS}, recompute": functools.partial(ours, recompute=True),
        LOOP: loop,
        "transformers grouped_mm": CONTENDERS["transformers grouped_mm"],
    }
    rows: list[Row] = []
    for name in options.shapes:
        layer = make_layer(SHAPES[name], options.tokens, "balanced", options.device, torch.bfloat16)
        for contender, make in contenders.items():
            _, kept = step_of(make(layer), backward=True)
            rows.append({"shape": name, "contender": contender, "KiB/token": kept / options.tokens / 1024})
    return Result(rows)


def _compare(options: argparse.Namespace, tokens: list[int], backward: bool, graph: bool = False) -> Result:
    if options.device == "cuda" and not torch.cuda.is_available():
        return Result([], notes=["needs a CUDA GPU and sees none; --device cpu --experts 4 tries the harness itself"])
    limits = limits_of(options.device, options.repeats) if options.device == "cuda" else None
    rows: list[Row] = []
    for name in options.shapes:
        shape = SHAPES[name]
        if options.experts:
            small = {"model": shape.model // 16, "hidden": shape.hidden // 16, "top_k": min(shape.top_k, 2)}
            shape = LayerShape(**vars(shape) | small | {"experts": options.experts})
        for load in options.loads:
            for count in tokens:
                layer = make_layer(shape, count, load, options.device, torch.bfloat16)
                measured = _rows(layer, load, options, limits, backward, graph and options.device == "cuda")
                for row in measured:  # on a borrowed machine a run may be cut short
                    print(json.dumps(row), file=sys.stderr, flush=True)
                rows += measured
                del layer
    reasons = {row["contender"]: row.pop(REASON) for row in rows if REASON in row}
    notes = [f"{contender} was not run: {reason}" for contender, reason in reasons.items()]
    notes += ["times in ms; a contender whose result is wrong is not timed"]
    if backward:
        notes += ["transformers' own do not train biases here: their gradients, summed in bf16, would be refused"]
    if limits:
        notes += [
            f"limits measured in this run: {limits.teraflops:.0f} TFLOP/s by torch's bf16 product of 8192 x 8192 "
            f"matrices, {limits.gigabytes:.0f} GB/s of memory over 4 GiB",
            "host us: until the call returns with the device idle before it; peak: memory one step adds, gradients "
            "included",
        ]
    return Result(rows, notes, [_draw(rows, options.out)] if options.out and rows else [])


def _rows(
    layer: Layer, load: str, options: argparse.Namespace, limits: Limits | None, backward: bool, graph: bool
) -> list[Row]:
    tokens = layer.hidden_TD.shape[0]
    rows: list[Row] = []
    truth = _results(loop(layer), backward)
    for name, make in CONTENDERS.items():
        if (name == "transformers batched_mm" and tokens > BATCHED_LIMIT) or (graph and name in NOT_FOR_GRAPHS):
            continue
        row: Row = {"shape": layer.shape.name, "load": load, "tokens": tokens, "contender": name}
        try:
            contender = make(layer)
            wrong = {} if name == DENSE else _errors(_results(contender, backward), truth)
            if wrong:
                row["p50 ms"] = "refused: " + ", ".join(f"{part} off by {error:.2g}" for part, error in wrong.items())
            else:
                row |= _measured(layer, contender, options, limits, backward, graph)
        except Exception as failure:  # one contender's trouble, or its absence, must not end a run on a borrowed GPU
            row |= {"p50 ms": f"not run: {type(failure).__name__}", REASON: str(failure)[:300]}
        rows.append(row)
    dense_row = next((r for r in rows if r["contender"] == DENSE and "TFLOP/s" in r), None)
    for row in rows:
        if dense_row and "TFLOP/s" in row:
            row["% of dense"] = 100 * row["TFLOP/s"] / dense_row["TFLOP/s"]
    return rows


def _measured(
    layer: Layer, contender: Contender, options: argparse.Namespace, limits: Limits | None, backward: bool, graph: bool
) -> Row:
    """The columns of one contender."""
    tokens = layer.hidden_TD.shape[0]
    step, kept = step_of(contender, backward)
    p20, p50, p80 = quantiles_of(step, options.repeats, options.device, graph)
    touched = layer.ids_TK.unique().numel() * (layer.up[0].numel() + layer.down[0].numel()) * layer.up.element_size()
    row: Row = {"p20 ms": p20, "p50 ms": p50, "p80 ms": p80}
    row["TFLOP/s"] = layer.shape.forward_flops(tokens) * (3 if backward else 1) / p50 / 1e9
    row["weights GB/s"] = touched / p50 / 1e6
    if limits:
        row["% of product"] = 100 * row["TFLOP/s"] / limits.teraflops
        row["% of bandwidth"] = 100 * row["weights GB/s"] / limits.gigabytes
        row["host us"] = host_microseconds(step)
        row["peak MiB"] = peak_bytes(step) / 2**20
    if backward:
        row["kept KiB/token"] = kept / tokens / 1024
    return row


def _results(contender: Contender, backward: bool) -> dict[str, Tensor]:
    """The output and, when training, the gradients by name; those of an expert each laid end to end."""
    if not backward:
        with torch.no_grad():
            return {"output": contender.run(contender.hidden)}
    leaves = _leaves(contender)
    out_TD = contender.run(leaves[0])
    gradients = iter(_gradients(out_TD, leaves, torch.ones_like(out_TD)))
    results = {"output": out_TD.detach(), "input's gradient": next(gradients)}
    for name, tensors in contender.parameters.items():
        results[name] = torch.cat([next(gradients).flatten() for _ in tensors])
    if contender.routing_weights is not None:
        results["routing weights' gradient"] = next(gradients)
    return results


def _errors(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of what both have, where they are too large or not a number."""
    errors = {
        name: (torch.linalg.vector_norm(value - truth[name], dtype=torch.float32)
               / torch.linalg.vector_norm(truth[name], dtype=torch.float32)).item()
        for name, value in ((name, value.view_as(truth[name])) for name, value in results.items() if name in truth)
    }  # fmt: skip
    return {name: error for name, error in errors.items() if not error <= WRONG}


def _gradients(out_TD: Tensor, leaves: list[Tensor], grad_TD: Tensor) -> tuple[Tensor, ...]:
    """Of every leaf; zeros where an expert, a parameter of its own in the loop over experts, got no token."""
    return torch.autograd.grad(out_TD, leaves, grad_TD, materialize_grads=True)


def _leaves(contender: Contender) -> list[Tensor]:
    """What training gives gradients to: the input, the parameters, the routing weights."""
    parameters = [x for tensors in contender.parameters.values() for x in tensors]
    routing = [] if contender.routing_weights is None else [contender.routing_weights]
    return [x.requires_grad_() for x in (contender.hidden, *parameters, *routing)]


def step_of(contender: Contender, backward: bool) -> tuple[Callable[[], Any], int]:
    """One repetition, and the bytes training keeps between forward and backward besides the parameters."""
    if not backward:
        return torch.no_grad()(lambda: contender.run(contender.hidden)), 0
    leaves = _leaves(contender)
    parameters = {x.untyped_storage().data_ptr() for tensors in contender.parameters.values() for x in tensors}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out_TD = contender.run(contender.hidden)
    grad_TD = torch.randn_like(out_TD)
    return lambda: _gradients(contender.run(contender.hidden), leaves, grad_TD), sum(kept.values())


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
