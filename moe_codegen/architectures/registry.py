"""The dense families that can be upcycled: a new one is a file beside this and a line here."""

from collections.abc import Mapping
from typing import Any

from moe_codegen.architectures.architecture import Architecture
from moe_codegen.architectures.gpt_bigcode import GPT_BIGCODE
from moe_codegen.architectures.llama import GEMMA, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3
from moe_codegen.architectures.phi import PHI
from moe_codegen.architectures.starcoder2 import STARCODER2

ARCHITECTURES: dict[str, Architecture] = {
    architecture.family: architecture
    for architecture in (GPT_BIGCODE, PHI, STARCODER2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, PHI3)
}

MIXTURE_PREFIX = "moe_"  # before the family, in a mixture's `model_type`


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint whose `config.json` says `config` is a mixture of this library."""
    return str(config.get("model_type")).startswith(MIXTURE_PREFIX)


def is_known(model_type: str) -> bool:
    """Whether a layout of some family has this `model_type` in its `config.json`."""
    families = ARCHITECTURES.values()
    return any(model_type in layout.model_types for family in families for layout in family.layouts)
