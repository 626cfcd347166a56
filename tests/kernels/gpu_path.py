"""expert_ffn by way of the GPU launchers, on CPU tensors, with tiles small enough for small problems."""

import functools
from dataclasses import replace

import torch

from moe_codegen_kernels import tiles
from moe_codegen_kernels.gpu import layer
from moe_codegen_kernels.records import ExpertWeights, RoutingPlan
from moe_codegen_kernels.tiles import Bucket, Gpu, Tile

GPU = Gpu("sm_90", processors=3, name="absent")  # fewer than there are tiles: programs must walk


def small_bucket(path: str) -> Bucket:
    """Tiles that leave edges in every direction of a problem of a few dozen."""
    tile = Tile(block_m=16, block_n=32, block_k=16, warps=4, stages=2, group_m=2)
    wide = replace(tile, block_n=64)  # `down_gradient` takes its columns in parts
    return Bucket(0, path, tile, tile, tile, wide, ragged_k=Tile(32, 32, 16, 4, 2, group_m=2))


def use_tiles(monkeypatch, path: str) -> None:
    """Feed every GEMM by `path`; what TMA cannot read still goes by pointer."""
    buckets = (small_bucket(path), small_bucket("pointer"))
    monkeypatch.setattr(tiles, "buckets_of", lambda gpu, element_bytes: buckets)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gpu, activation, gated, recompute, *tensors):
        hidden_TD, ids_TK, weights_TK, *weights = tensors
        experts = ExpertWeights(*weights, activation, gated)
        out_TD, *kept = layer.expert_ffn(hidden_TD, ids_TK, weights_TK, experts, True, not recompute, gpu)
        ctx.save_for_backward(hidden_TD, weights_TK, *weights, *kept)
        ctx.gpu, ctx.kind = gpu, (activation, gated)
        return out_TD

    @staticmethod
    def backward(ctx, grad_TD):
        hidden_TD, weights_TK, *weights, h_RG, order_R, inverse_R, offsets_E = ctx.saved_tensors
        needs = [True, True, *(x is not None for x in weights)]
        experts, plan = ExpertWeights(*weights, *ctx.kind), RoutingPlan(order_R, inverse_R, offsets_E)
        kept_RG = h_RG if h_RG.numel() else None
        gradients = layer.expert_ffn_backward(grad_TD, hidden_TD, weights_TK, experts, kept_RG, plan, needs, ctx.gpu)
        hidden, *others = (g if needed else None for g, needed in zip(gradients, needs, strict=True))
        return None, None, None, None, hidden, None, *others


def expert_ffn_on(gpu, *tensors, activation, gated, recompute=False):
    """The signature of moe_codegen_kernels.expert_ffn, after the GPU whose launchers run it."""
    return _Layer.apply(gpu, activation, gated, recompute, *tensors)


expert_ffn_on_gpu_path = functools.partial(expert_ffn_on, GPU)
