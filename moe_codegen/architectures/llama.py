"""Llama and the families that share its gated FFN: Code Llama, DeepSeek-Coder, Mistral, Qwen2(.5)-Coder, Qwen3."""

from moe_codegen.architectures.architecture import Architecture, FeedForward
from moe_codegen.architectures.layout import ROTARY_TABLE, Layout


def _gated_family(family: str, class_prefix: str, bias: bool | str = False) -> Architecture:
    return Architecture(
        family=family,
        class_prefix=class_prefix,
        layers="model.layers",
        norm="post_attention_layernorm",
        ffn=FeedForward(up="up_proj", down="down_proj", gate="gate_proj", bias=bias),
        layouts=(Layout(family, (family,), ignored=(ROTARY_TABLE,)),),
    )


LLAMA = _gated_family("llama", "Llama", bias="mlp_bias")
MISTRAL = _gated_family("mistral", "Mistral")
QWEN2 = _gated_family("qwen2", "Qwen2")
QWEN3 = _gated_family("qwen3", "Qwen3")
