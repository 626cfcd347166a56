"""Turn dense code language models into sparse mixtures of experts, and run them fast."""

from moe_codegen.modeling import ExpertQuantisationConfig as ExpertQuantisationConfig
from moe_codegen.modeling import MoEConfig as MoEConfig
from moe_codegen.modeling import MoEForCausalLM as MoEForCausalLM
from moe_codegen.moe import pack_experts as pack_experts
from moe_codegen.moe import register_experts_implementation
from moe_codegen.moe import unpack_experts as unpack_experts
from moe_codegen.upcycle import export as export
from moe_codegen.upcycle import extract as extract
from moe_codegen.upcycle import quantise as quantise
from moe_codegen.upcycle import upcycle as upcycle

# Makes `experts_implementation="moe_codegen"` known to every mixture-of-experts model of transformers.
register_experts_implementation()
