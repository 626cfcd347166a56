"""The model of a run: loaded or new, with what is not to be trained frozen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moe_codegen.architectures import ARCHITECTURES, DenseCheckpoint, is_known
from moe_codegen.checkpoint import load_tokenizer, read_json, resolve_source
from moe_codegen.errors import ConfigError, TokenizerError
from moe_codegen.generation import load_model
from moe_codegen.modeling import MoEConfig, MoEForCausalLM
from moe_codegen.modeling.quantisation import quantisation_of
from moe_codegen.moe import Experts, TopKRouter
from moe_codegen.training.settings import DenseModelSettings, MixSettings, TrainSettings


def load_for_training(settings: TrainSettings) -> tuple[PreTrainedModel, Any]:
    """The model in fp32, its trained part requiring gradients, and its tokenizer.

    Raises:
        ConfigError: a dense model where a mixture is wanted, or the other way round; a mixture with quantised experts.
        CheckpointError: it is not there, or cannot be used.
        TokenizerError: it has no tokenizer.
    """
    tokenizer = _load_tokenizer(resolve_source(getattr(settings, "tokenizer", "") or settings.model))
    model = _load_mixture(settings) if isinstance(settings, MixSettings) else _load_dense(settings, len(tokenizer))
    return model, tokenizer


def read_config(settings: TrainSettings) -> PreTrainedConfig:
    """The configuration of the model; raises as `load_for_training`, before a weight is read."""
    source = settings.model or getattr(settings, "config", "")
    file = config_file(source)
    model_type = read_json(file).get("model_type", "")
    if isinstance(settings, MixSettings):
        config = MoEConfig.from_pretrained(file.parent)
        if (quantisation := quantisation_of(config)) is not None:
            raise ConfigError(
                f"the experts of {source} are quantised ({quantisation}) and cannot be trained; train the mixture that "
                "it was made from, and quantise the result"
            )
        return config
    if not (is_known(model_type) if settings.model else model_type in ARCHITECTURES):
        raise ConfigError(
            f"{source} is of model_type {model_type!r}, not a supported dense model ({', '.join(ARCHITECTURES)}); "
            "a mixture is trained with `moe-codegen train mix`"
        )
    return DenseCheckpoint(file.parent).config if settings.model else AutoConfig.from_pretrained(file)


def config_file(source: str) -> Path:
    """The file of a configuration that is named by itself, by its folder or by a Hub id."""
    return Path(source) if Path(source).is_file() else resolve_source(source) / "config.json"


def merged(model: Any) -> PreTrainedModel:
    """The plain model: LoRA matrices, where it has any, added to the weights they belong to."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


# Fields of the configuration that a run may set anew; None keeps the checkpoint's.
ROUTER_FIELDS = ("router_aux_loss_coef", "router_z_loss_coef", "router_logit_scale", "language_routing")


def _load_mixture(settings: MixSettings) -> PreTrainedModel:
    config = read_config(settings)
    fields = {name: value for name in ROUTER_FIELDS if (value := getattr(settings, name)) is not None}
    if settings.language_routing == "oracle":
        fields["num_experts_per_tok"] = config.expert_granularity
    fields["recompute_experts"] = settings.recompute_experts
    model = MoEForCausalLM.from_pretrained(resolve_source(settings.model), dtype=torch.float32, **fields)
    if settings.parts != "all":
        routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        experts = [module for module in model.modules() if isinstance(module, Experts)]
        model.requires_grad_(settings.parts == "shared")
        _require_grad(experts, False)
        _require_grad(routers, True)
    return model


def _load_dense(settings: TrainSettings, vocabulary: int) -> Any:
    assert isinstance(settings, DenseModelSettings)
    config = read_config(settings)
    if settings.config:
        if config.vocab_size < vocabulary:
            raise ConfigError(
                f"vocab_size={config.vocab_size} of {settings.config} is less than the {vocabulary} tokens of "
                f"{settings.tokenizer}, sentinels included; set vocab_size={vocabulary}"
            )
        torch.manual_seed(settings.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Whatever layout it is stored in; transformers would take weights that it does not know for missing, at random.
    model, _ = load_model(settings.model, torch.float32, "cpu")
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


def _load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise TokenizerError(
            f"the tokenizer of {folder} cannot be read: {error}. Copy the one that the data was packed with into it"
        ) from error
    if tokenizer is None:
        raise TokenizerError(
            f"{folder} has no tokenizer, so it cannot be told whether the data was packed for it. Copy the tokenizer "
            "that the data was packed with into it"
        )
    return tokenizer


def _require_grad(modules: Sequence[nn.Module], required: bool) -> None:
    for module in modules:
        module.requires_grad_(required)
