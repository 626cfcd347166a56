"""Turn dense code language models into sparse mixtures of experts, and run them fast."""

from moe_codegen.modeling import MoEConfig as MoEConfig
from moe_codegen.modeling import MoEForCausalLM as MoEForCausalLM
from moe_codegen.upcycle import extract as extract
from moe_codegen.upcycle import upcycle as upcycle
