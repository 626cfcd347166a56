"""The classes of each family, made from its architecture, and their registration with transformers' Auto classes.

For the family phi: `MoEPhiConfig(MoEConfig, PhiConfig)`, `MoEPhiModel(MoEBackbone, PhiModel)` and
`MoEPhiForCausalLM(MoEForCausalLM, PhiForCausalLM)`, with the model_type `moe_phi`. They are attributes of this module.
"""

from typing import Any

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.output_capturing import OutputRecorder

from moe_codegen.architectures import ARCHITECTURES, MIXTURE_PREFIX, Architecture
from moe_codegen.modeling.configuration import MoEConfig
from moe_codegen.modeling.modeling import MoEBackbone, MoEForCausalLM
from moe_codegen.moe import TopKRouter


def _define(name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
    """A class of this module, found here by name when it is unpickled."""
    globals()[name] = type(name, bases, {"__module__": __name__, **attributes})
    return globals()[name]


def _register(architecture: Architecture) -> None:
    prefix = architecture.class_prefix
    dense_config, dense_model, dense_causal_lm = (
        getattr(transformers, prefix + suffix) for suffix in ("Config", "Model", "ForCausalLM")
    )
    config_class = _define(
        f"MoE{prefix}Config",
        (MoEConfig, dense_config),
        {
            "__doc__": f"`MoEConfig` of the family {architecture.family}.",
            "model_type": MIXTURE_PREFIX + architecture.family,
            "architecture": architecture,
            # The dense plan shards FFNs that are no longer there.
            "base_model_tp_plan": {
                module: style
                for module, style in (dense_config.base_model_tp_plan or {}).items()
                if ".mlp." not in module
            },
        },
    )
    recorded = {"router_logits": OutputRecorder(TopKRouter, index=0)}
    model_class = _define(
        f"MoE{prefix}Model",
        (MoEBackbone, dense_model),
        {
            "__doc__": f"`{prefix}Model` with mixtures in place of its FFNs.",
            "config_class": config_class,
            "_can_record_outputs": {**dense_model._can_record_outputs, **recorded},
        },
    )
    causal_lm_class = _define(
        f"MoE{prefix}ForCausalLM",
        (MoEForCausalLM, dense_causal_lm),
        {
            "__doc__": f"`{prefix}ForCausalLM` with mixtures in place of its FFNs.",
            "config_class": config_class,
            "backbone_class": model_class,
        },
    )
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
    AutoModelForCausalLM.register(config_class, causal_lm_class)


for _architecture in ARCHITECTURES.values():
    _register(_architecture)
