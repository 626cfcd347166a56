"""The model of a run: loaded or new, with what is not to be trained frozen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from moe_codegen.architectures import ARCHITECTURES
from moe_codegen.errors import ConfigError, TokenizerError
from moe_codegen.modeling import MoEConfig, MoEForCausalLM
from moe_codegen.moe import Experts, TopKRouter
from moe_codegen.training.settings import DenseModelSettings, MixSettings, TrainSettings


def load_for_training(settings: TrainSettings) -> tuple[PreTrainedModel, Any]:
    """The model in fp32, its trained part requiring gradients, and its tokenizer.

    Raises:
        ConfigError: a dense model where a mixture is wanted, or the other way round.
        TokenizerError: it has no tokenizer.
    """
    model = _load_mixture(settings) if isinstance(settings, MixSettings) else _load_dense(settings)
    return model, _load_tokenizer(getattr(settings, "tokenizer", "") or settings.model)


def merged(model: Any) -> PreTrainedModel:
    """The plain model: LoRA matrices, where it has any, added to the weights they belong to."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


# Fields of the configuration that a run may set anew; None keeps the checkpoint's.
ROUTER_FIELDS = ("router_aux_loss_coef", "router_z_loss_coef", "router_logit_scale", "language_routing")


def _load_mixture(settings: MixSettings) -> PreTrainedModel:
    config = MoEConfig.from_pretrained(settings.model)
    fields = {name: value for name in ROUTER_FIELDS if (value := getattr(settings, name)) is not None}
    if settings.language_routing == "oracle":
        fields["num_experts_per_tok"] = config.expert_granularity
    fields["recompute_experts"] = settings.recompute_experts
    model = MoEForCausalLM.from_pretrained(settings.model, dtype=torch.float32, **fields)
    if settings.parts != "all":
        routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        experts = [module for module in model.modules() if isinstance(module, Experts)]
        model.requires_grad_(settings.parts == "shared")
        _require_grad(experts, False)
        _require_grad(routers, True)
    return model


def _load_dense(settings: TrainSettings) -> Any:
    assert isinstance(settings, DenseModelSettings)
    if settings.config:
        config = AutoConfig.from_pretrained(settings.config)
        if config.model_type not in ARCHITECTURES:
            raise ConfigError(
                f"{settings.config} is of model_type {config.model_type!r}; supported are {', '.join(ARCHITECTURES)}"
            )
        vocabulary = len(_load_tokenizer(settings.tokenizer))
        if config.vocab_size < vocabulary:
            raise ConfigError(
                f"vocab_size={config.vocab_size} of {settings.config} is less than the {vocabulary} tokens of "
                f"{settings.tokenizer}, sentinels included; set vocab_size={vocabulary}"
            )
        torch.manual_seed(settings.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    if isinstance(model.config, MoEConfig) or model.config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"{settings.model} is of model_type {model.config.model_type!r}, not a supported dense model "
            f"({', '.join(ARCHITECTURES)}); a mixture is trained with `moe-codegen train mix`"
        )
    if settings.parts == "ffn":
        layers = model.get_submodule(ARCHITECTURES[model.config.model_type].layers)
        model.requires_grad_(False)
        _require_grad([layer.get_submodule("mlp") for layer in layers.children()], True)
    elif settings.parts == "lora":
        import peft

        torch.manual_seed(settings.seed)
        adapter = peft.LoraConfig(
            r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, adapter)
    return model


def _load_tokenizer(folder: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"{folder} has no tokenizer, so it cannot be told whether the data was packed for it: {error}. "
            "Copy the tokenizer that the data was packed with into it"
        ) from error


def _require_grad(modules: Sequence[nn.Module], required: bool) -> None:
    for module in modules:
        module.requires_grad_(required)
