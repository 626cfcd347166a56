"""Phi-1, Phi-1.5, Phi-2. Ungated, biased, tanh-GELU; attention and FFN run in parallel behind one norm."""

from typing import Any

from transformers import PreTrainedConfig

from moe_codegen.architectures.architecture import Architecture, FeedForward
from moe_codegen.architectures.layout import (
    ROTARY_TABLE,
    Fused,
    HeadInterleaved,
    Layout,
    Rule,
    Same,
    weight_and_bias,
)

LAYER = "model.layers.{layer}"
OLD_LAYER = "transformer.h.{layer}"
PROJECTIONS = tuple(f"{LAYER}.self_attn.{name}_proj" for name in "qkv")


def _query_key_value(config: PreTrainedConfig) -> list[int]:
    key_value = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    return [config.hidden_size, key_value, key_value]


def _from_phi_msft(config: dict[str, Any]) -> dict[str, Any]:
    """What Microsoft's own class called by GPT-2's names."""
    renamed = {
        "hidden_size": config["n_embd"],
        "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "num_key_value_heads": config.get("n_head_kv") or config["n_head"],
        "max_position_embeddings": config["n_positions"],
        "hidden_act": config.get("activation_function", "gelu_new"),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "attention_dropout": config.get("attn_pdrop", 0.0),
        "partial_rotary_factor": config.get("rotary_dim", 32) / (config["n_embd"] // config["n_head"]),
        "rope_theta": 10000.0,
        # The old class left these to the tokenizer, whose end of text is its last regular token.
        "bos_token_id": config.get("bos_token_id", 50256),
        "eos_token_id": config.get("eos_token_id", 50256),
    }
    kept = (
        "vocab_size",
        "resid_pdrop",
        "embd_pdrop",
        "initializer_range",
        "tie_word_embeddings",
        "torch_dtype",
        "pad_token_id",
        "use_cache",
    )
    return {**{key: config[key] for key in kept if key in config}, **renamed}


def _renamed(stored: str, canonical: str) -> list[Rule]:
    return weight_and_bias((stored,), (canonical,), weight=Same(), bias=Same())


PHI = Architecture(
    family="phi",
    class_prefix="Phi",
    layers="model.layers",
    norm="input_layernorm",
    ffn=FeedForward(inner=("fc1",), down="fc2", bias=True),
    lm_head_bias=True,
    layouts=(
        Layout(
            "phi",
            ("phi",),
            lambda config, shapes: "model.layers.0.self_attn.query_key_value.weight" not in shapes,
            ignored=(ROTARY_TABLE,),
        ),
        Layout(
            "phi-fused",  # transformers 4.36 for a few weeks: one projection, interleaved by head
            ("phi",),
            lambda config, shapes: "model.layers.0.self_attn.query_key_value.weight" in shapes,
            rules=tuple(
                weight_and_bias(
                    (f"{LAYER}.self_attn.query_key_value",),
                    PROJECTIONS,
                    weight=HeadInterleaved(),
                    bias=HeadInterleaved(),
                )
            ),
            ignored=(ROTARY_TABLE,),
        ),
        Layout(
            "phi-msft",  # Microsoft's own modelling code, before transformers had the model
            ("phi-msft",),
            rules=(
                Rule(("transformer.embd.wte.weight",), ("model.embed_tokens.weight",)),
                *_renamed(f"{OLD_LAYER}.ln", f"{LAYER}.input_layernorm"),
                *weight_and_bias(
                    (f"{OLD_LAYER}.mixer.Wqkv",),
                    PROJECTIONS,
                    weight=Fused(_query_key_value),
                    bias=Fused(_query_key_value),
                ),
                *_renamed(f"{OLD_LAYER}.mixer.out_proj", f"{LAYER}.self_attn.dense"),
                *_renamed(f"{OLD_LAYER}.mlp.fc1", f"{LAYER}.mlp.fc1"),
                *_renamed(f"{OLD_LAYER}.mlp.fc2", f"{LAYER}.mlp.fc2"),
                *_renamed("lm_head.ln", "model.final_layernorm"),
                *_renamed("lm_head.linear", "lm_head"),
            ),
            ignored=(r"transformer\.h\.\d+\.mixer\.rotary_emb\.inv_freq",),
            to_config=_from_phi_msft,
        ),
    ),
)
