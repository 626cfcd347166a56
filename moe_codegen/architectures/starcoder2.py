"""StarCoder2. Ungated, biased unless its config says otherwise, tanh-GELU, dropout inside the FFN's module."""

from moe_codegen.architectures.architecture import Architecture, FeedForward
from moe_codegen.architectures.layout import Layout

STARCODER2 = Architecture(
    family="starcoder2",
    class_prefix="Starcoder2",
    layers="model.layers",
    norm="post_attention_layernorm",
    ffn=FeedForward(inner=("c_fc",), down="c_proj", bias="use_bias", dropout="residual_dropout"),
    layouts=(Layout("starcoder2", ("starcoder2",)),),
)
