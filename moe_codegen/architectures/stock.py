"""Mixtures that transformers itself has, and serving engines like it: which family's mixture each can stand for.

The checkpoints are laid out as their makers published them, an expert's matrices apart.
"""

from dataclasses import dataclass, replace

from transformers import CONFIG_MAPPING


@dataclass(frozen=True)
class StockMixture:
    """A mixture-of-experts model of transformers, whose layers are a dense family's but for the FFN.

    Attributes:
        model_type, class_name: what `config.json` calls it.
        block: the module of a sparse layer; its router is `gate`.
        linears: the linear layers of a dense FFN -> of an expert.
        experts_field, width_field: the config fields of E and F.
    """

    model_type: str
    class_name: str
    block: str
    linears: dict[str, str]
    experts_field: str
    width_field: str

    @property
    def fields(self) -> frozenset[str]:
        """The fields of its configuration, which say what it can be told: which layers are dense, for one."""
        return frozenset(CONFIG_MAPPING[self.model_type].__annotations__)

    @property
    def has_shared_expert(self) -> bool:
        """Whether an expert that takes every token stands beside the others, with a gate of its own."""
        return "shared_expert_intermediate_size" in self.fields


_AS_DENSE = {name: name for name in ("gate_proj", "up_proj", "down_proj")}
MIXTRAL = StockMixture(
    "mixtral",
    "MixtralForCausalLM",
    block="block_sparse_moe",
    linears={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    experts_field="num_local_experts",
    width_field="intermediate_size",
)
QWEN3_MOE = StockMixture(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    block="mlp",
    linears=_AS_DENSE,
    experts_field="num_experts",
    width_field="moe_intermediate_size",
)
QWEN2_MOE = replace(QWEN3_MOE, model_type="qwen2_moe", class_name="Qwen2MoeForCausalLM")
STOCK_MIXTURES = {"llama": MIXTRAL, "mistral": MIXTRAL, "qwen2": QWEN2_MOE, "qwen3": QWEN3_MOE}
