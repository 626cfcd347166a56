"""GPT-BigCode: SantaCoder, StarCoderBase. Ungated, biased, tanh-GELU, dropout inside the FFN's module."""

from typing import Any

from transformers import PreTrainedConfig

from moe_codegen.architectures.architecture import Architecture, FeedForward
from moe_codegen.architectures.layout import Joined, Layout, Rule, Same, Shapes, Transposed, weight_and_bias

LAYER = "transformer.h.{layer}"
MASKS = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)


def _query_and_key_value(config: PreTrainedConfig) -> list[int]:
    # Multi-query attention: one key head and one value head, stored together.
    return [config.hidden_size, 2 * config.hidden_size // config.num_attention_heads]


def _is_multi_query(config: dict[str, Any]) -> bool:
    # A plain GPT-2 has the same tensor names; what makes it a SantaCoder is its attention.
    return config["model_type"] == "gpt_bigcode" or config.get("attention_head_type") == "multiquery"


def _stores_conv1d(config: dict[str, Any], shapes: Shapes) -> bool:
    # The attention's projection is square and cannot show its orientation; the FFN's, or else the fused one, can.
    for name in ("mlp.c_fc", "attn.c_attn"):
        shape = shapes.get(f"transformer.h.0.{name}.weight")
        if shape and shape[0] != shape[1]:
            return shape[0] == shapes.get("transformer.wte.weight", (0, 0))[1]
    return config["model_type"] == "gpt2"


def _splits_query(config: dict[str, Any], shapes: Shapes) -> bool:
    return _is_multi_query(config) and "transformer.h.0.attn.q_attn.weight" in shapes


def _is_fused_conv1d(config: dict[str, Any], shapes: Shapes) -> bool:
    return _is_multi_query(config) and not _splits_query(config, shapes) and _stores_conv1d(config, shapes)


def _is_canonical(config: dict[str, Any], shapes: Shapes) -> bool:
    return not _splits_query(config, shapes) and not _stores_conv1d(config, shapes)


def _from_gpt2(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "auto_map")}
    return {**kept, "multi_query": True}


TRANSPOSED = tuple(
    Rule((f"{LAYER}.{name}.weight",), (f"{LAYER}.{name}.weight",), Transposed())
    for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)

GPT_BIGCODE = Architecture(
    family="gpt_bigcode",
    class_prefix="GPTBigCode",
    layers="transformer.h",
    norm="ln_2",
    ffn=FeedForward(
        inner=("c_fc",),
        down="c_proj",
        bias=True,
        width="n_inner",
        activation="activation_function",
        dropout="resid_pdrop",
    ),
    layouts=(
        Layout("gpt_bigcode", ("gpt_bigcode",), _is_canonical, ignored=MASKS),
        Layout(
            "santacoder",  # bigcode/santacoder: GPT2LMHeadCustomModel, Conv1D, query apart from key and value
            ("gpt2",),
            _splits_query,
            rules=(
                *TRANSPOSED,
                *weight_and_bias(
                    (f"{LAYER}.attn.q_attn", f"{LAYER}.attn.kv_attn"),
                    (f"{LAYER}.attn.c_attn",),
                    weight=Joined(_query_and_key_value, transposed=True),
                    bias=Joined(_query_and_key_value),
                ),
            ),
            ignored=MASKS,
            to_config=_from_gpt2,
        ),
        Layout(
            "santacoder-fused",  # Conv1D as above, but one projection for query, key and value
            ("gpt2", "gpt_bigcode"),
            _is_fused_conv1d,
            rules=(
                *TRANSPOSED,
                *weight_and_bias(
                    (f"{LAYER}.attn.c_attn",), (f"{LAYER}.attn.c_attn",), weight=Transposed(), bias=Same()
                ),
            ),
            ignored=MASKS,
            to_config=_from_gpt2,
        ),
    ),
)
