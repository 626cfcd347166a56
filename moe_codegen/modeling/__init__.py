"""The model: configuration, and the causal language model of each family."""

from moe_codegen.modeling import (
    families as families,
)  # registers every family with transformers' Auto classes
from moe_codegen.modeling.configuration import MoEConfig as MoEConfig
from moe_codegen.modeling.modeling import MoECausalLMOutput as MoECausalLMOutput
from moe_codegen.modeling.modeling import MoEForCausalLM as MoEForCausalLM
from moe_codegen.modeling.quantisation import ExpertQuantisationConfig as ExpertQuantisationConfig
