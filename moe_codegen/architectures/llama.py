"""Llama and the families that share its gated FFN: Mistral, Qwen2 and 3, Gemma, Phi-3, with their code models."""

from moe_codegen.architectures.architecture import Architecture, FeedForward
from moe_codegen.architectures.layout import ROTARY_TABLE, Layout


def _gated_family(
    family: str, class_prefix: str, *, bias: bool | str = False, inner: tuple[str, ...] = ("gate_proj", "up_proj")
) -> Architecture:
    return Architecture(
        family=family,
        class_prefix=class_prefix,
        layers="model.layers",
        norm="post_attention_layernorm",
        ffn=FeedForward(inner, down="down_proj", gated=True, bias=bias),
        layouts=(Layout(family, (family,), ignored=(ROTARY_TABLE,)),),
    )


LLAMA = _gated_family("llama", "Llama", bias="mlp_bias")
MISTRAL = _gated_family("mistral", "Mistral")
QWEN2 = _gated_family("qwen2", "Qwen2")
QWEN3 = _gated_family("qwen3", "Qwen3")
GEMMA = _gated_family("gemma", "Gemma")
PHI3 = _gated_family("phi3", "Phi3", inner=("gate_up_proj",))
