"""The ways to compute one expert layer that are measured beside each other, each given the same weights and routing."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward

from benchmarks.shapes import LayerShape
from moe_codegen_kernels import expert_ffn
from moe_codegen_kernels.activations import activate

OURS = "moe_codegen"
DENSE = "dense of equal FLOPs"  # the yardstick: right by construction, and another function than the layer
LOOP = "loop over experts"


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
    def parameters(self) -> dict[str, list[Tensor]]:
        """What training computes gradients of, besides the input."""
        named = {"up": self.up, "up_bias": self.up_bias, "down": self.down, "down_bias": self.down_bias}
        return {name: [tensor] for name, tensor in named.items() if tensor is not None}


class Contender(NamedTuple):
    """One way: `run(hidden)` computes it; training wants gradients of `hidden`, `parameters` and `routing_weights`.

    Parameters are leaves of the sizes that this way would own them in, so that none pays for views into another's. The
    dense yardstick has no routing weights.
    """

    run: Callable[[Tensor], Tensor]
    hidden: Tensor
    parameters: dict[str, list[Tensor]]
    routing_weights: Tensor | None


def make_layer(shape: LayerShape, tokens: int, load: str, device: str, dtype: torch.dtype) -> Layer:
    """Random weights of unit gain, random input."""
    up, up_bias, down, down_bias, *_ = shape.weights(dtype, device)
    for matrix in (up, down):
        matrix.normal_(std=matrix.shape[-1] ** -0.5)
    for bias in (up_bias, down_bias):
        if bias is not None:
            bias.zero_()
    hidden_TD = torch.randn(tokens, shape.model, dtype=dtype, device=device)
    return Layer(shape, hidden_TD, *shape.routing(tokens, load, device), up, up_bias, down, down_bias)


def ours(layer: Layer, recompute: bool = False) -> Contender:
    """The op of this project."""
    rest = (layer.ids_TK, layer.weights_TK, layer.up, layer.up_bias, layer.down, layer.down_bias)
    kind = {"activation": layer.shape.activation, "gated": layer.shape.gated}

    def run(hidden_TD: Tensor) -> Tensor:
        return expert_ffn(hidden_TD, *rest, **kind, recompute=recompute)

    return Contender(run, layer.hidden_TD, layer.parameters, layer.weights_TK)


def dense(layer: Layer) -> Contender:
    """One expert over as many rows as are routed: what the vendor's library reaches without routing."""
    names = ("up", "up_bias", "down", "down_bias")
    one = {name: x[0].detach() for name in names if (x := getattr(layer, name)) is not None}
    hidden_RD = layer.hidden_TD.repeat(layer.shape.top_k, 1)
    weights = [one.get(name) for name in names]
    parameters = {name: [x] for name, x in one.items()}
    return Contender(lambda x_RD: _ffn(x_RD, *weights, layer.shape), hidden_RD, parameters, None)


def loop(layer: Layer) -> Contender:
    """An expert at a time through the vendor's library; which rows go where is known beforehand, at no cost."""
    rows = [torch.where(layer.ids_TK == expert) for expert in range(layer.shape.experts)]
    parameters = {name: [x.detach() for x in stacked.unbind()] for name, (stacked,) in layer.parameters.items()}

    def run(hidden_TD: Tensor) -> Tensor:
        out_TD = torch.zeros_like(hidden_TD)
        for expert, (tokens_M, choices_M) in enumerate(rows):
            if len(tokens_M):
                names = ("up", "up_bias", "down", "down_bias")
                weights = [parameters[name][expert] if name in parameters else None for name in names]
                y_MD = _ffn(hidden_TD[tokens_M], *weights, layer.shape)
                weighed_MD = y_MD * layer.weights_TK[tokens_M, choices_M, None]
                out_TD = out_TD.index_add(0, tokens_M, weighed_MD.to(out_TD.dtype))
        return out_TD

    return Contender(run, layer.hidden_TD, parameters, layer.weights_TK)


def torch_grouped_mm(layer: Layer) -> Contender:
    """torch's grouped product between a sort and a weighted sum, in as few calls as torch needs; no bias."""
    shape = layer.shape
    expert_E = torch.arange(shape.experts, device=layer.ids_TK.device)
    row_R = torch.arange(layer.ids_TK.numel(), device=layer.ids_TK.device)

    def run(hidden_TD: Tensor) -> Tensor:
        ids_R, order_R = layer.ids_TK.flatten().sort()
        ends_E = torch.searchsorted(ids_R, expert_E, right=True, out_int32=True)
        h_RG = F.grouped_mm(hidden_TD[order_R // shape.top_k], layer.up.mT, offs=ends_E)
        y_RD = F.grouped_mm(_activate(h_RG, shape), layer.down.mT, offs=ends_E)
        inverse_R = torch.empty_like(order_R).scatter_(0, order_R, row_R)
        y_TKD = y_RD[inverse_R].view(*layer.ids_TK.shape, shape.model)
        return torch.bmm(layer.weights_TK[:, None].to(y_TKD.dtype), y_TKD)[:, 0]

    return Contender(run, layer.hidden_TD, {"up": [layer.up], "down": [layer.down]}, layer.weights_TK)


def transformers_implementation(forward: Callable[..., Tensor]) -> Callable[[Layer], Contender]:
    """One of transformers' own, given what it reads from an experts module.

    Biases are frozen: it adds up their gradients row by row in bf16, and with thousands of rows most of a sum is lost.
    """

    def make(layer: Layer) -> Contender:
        shape, prefix = layer.shape, "gate_up_proj" if layer.shape.gated else "up_proj"
        biases = (layer.up_bias, layer.down_bias)
        up_bias, down_bias = (None if bias is None else bias.detach() for bias in biases)
        experts: Any = SimpleNamespace(
            num_experts=shape.experts, has_gate=shape.gated, has_bias=shape.bias, is_transposed=False,
            is_concatenated=True, has_post_expert_norm=False, _is_expert_parallel=False,
            down_proj=layer.down, down_proj_bias=down_bias,
            act_fn=lambda x: activate(shape.activation, x),
        )  # fmt: skip
        setattr(experts, prefix, layer.up)
        setattr(experts, f"{prefix}_bias", up_bias)
        experts._apply_gate = lambda h: experts.act_fn(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1]

        def run(hidden_TD: Tensor) -> Tensor:
            return forward(experts, hidden_TD, layer.ids_TK, layer.weights_TK)

        return Contender(run, layer.hidden_TD, {"up": [layer.up], "down": [layer.down]}, layer.weights_TK)

    return make


def scattermoe(layer: Layer) -> Contender:
    """ScatterMoE's two parallel-expert products, without bias; the sort is done beforehand, at no cost."""
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

    plan = flatten_sort_count(layer.ids_TK, num_experts=layer.shape.experts)

    def run(hidden_TD: Tensor) -> Tensor:
        h_RG = parallel_linear(hidden_TD, layer.up.mT, layer.shape.top_k, *plan, grouped_out=True)
        gates_TK = layer.weights_TK.to(hidden_TD.dtype)
        return parallel_linear(
            _activate(h_RG, layer.shape), layer.down.mT, 1, *plan, grouped_in=True, gates=gates_TK
        )  # fmt: skip

    return Contender(run, layer.hidden_TD, {"up": [layer.up], "down": [layer.down]}, layer.weights_TK)


def megablocks(layer: Layer) -> Contender:
    """MegaBlocks' dropless experts over grouped_gemm, given the routing; without bias."""
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import ParallelDroplessMLP

    shape = layer.shape
    experts = ParallelDroplessMLP(
        Arguments(
            hidden_size=shape.model, ffn_hidden_size=shape.hidden, moe_num_experts=shape.experts,
            moe_top_k=shape.top_k, mlp_type="glu" if shape.gated else "mlp", mlp_impl="grouped", bias=False,
            activation_fn=functools.partial(activate, shape.activation),
            fp16=layer.up.dtype == torch.float16, bf16=layer.up.dtype == torch.bfloat16, device=layer.up.device,
        )
    )  # fmt: skip
    theirs = {"w1": layer.up[:, : shape.hidden], "w2": layer.down.mT}
    if shape.gated:
        theirs["v1"] = layer.up[:, shape.hidden :]
    for name, weight in theirs.items():
        getattr(experts.mlp, name).data.copy_(weight.reshape(-1, shape.model))
    return Contender(
        lambda hidden_TD: experts.forward_once(hidden_TD, layer.weights_TK.to(hidden_TD.dtype), layer.ids_TK)[0],
        layer.hidden_TD,
        {name: [getattr(experts.mlp, name)] for name in theirs},
        layer.weights_TK,
    )


CONTENDERS: dict[str, Callable[[Layer], Contender]] = {
    OURS: ours,
    DENSE: dense,
    LOOP: loop,
    "torch grouped_mm": torch_grouped_mm,
    "transformers grouped_mm": transformers_implementation(grouped_mm_experts_forward),
    "transformers batched_mm": transformers_implementation(batched_mm_experts_forward),
    "ScatterMoE": scattermoe,
    "MegaBlocks": megablocks,
}


def _activate(h_MG: Tensor, shape: LayerShape) -> Tensor:
    if not shape.gated:
        return activate(shape.activation, h_MG)
    gate_MF, value_MF = h_MG.chunk(2, dim=-1)
    return activate(shape.activation, gate_MF) * value_MF


def _ffn(
    x_MD: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, shape: LayerShape
) -> Tensor:
    return F.linear(_activate(F.linear(x_MD, up, up_bias), shape), down, down_bias)
