"""Quantised experts by transformers' own way: a configuration in `config.json`, a quantiser that loading runs through.

On loading a full-precision mixture transformers hands over one mapped tensor at a time, here quantised a few rows at a
time; the model is never held twice.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from moe_codegen.architectures.dense import empty_model
from moe_codegen.errors import ConfigError
from moe_codegen.modeling.configuration import MoEConfig
from moe_codegen.moe.experts import Experts
from moe_codegen.moe.quantised import SCALES, QuantisedExperts
from moe_codegen_kernels import quantise_weight

METHOD = "moe_codegen_experts"
DEFAULT_GROUP = {8: None, 4: 32}

ExpertQuantisation = Literal["int8", "int4"]


@register_quantization_config(METHOD)
@dataclass
class ExpertQuantisationConfig(QuantizationConfigMixin):
    """How the experts of a mixture are stored; everything else keeps its dtype.

    Attributes:
        bits: 8 or 4.
        group_size: values of a row that share a scale; None is the whole row with 8 bits, and 32 with 4.

    Raises:
        ConfigError: other bits, or with 4 bits a group that is no multiple of 32.
    """

    quant_method: str = METHOD
    bits: int = 8
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in DEFAULT_GROUP:
            raise ConfigError(f"bits={self.bits} is not supported for experts; use 8 or 4")
        if self.group_size is None:
            self.group_size = DEFAULT_GROUP[self.bits]
        if self.group_size is not None and (self.group_size < 1 or (self.bits == 4 and self.group_size % 32)):
            raise ConfigError(f"group_size={self.group_size} is not supported with {self.bits} bits; use 32, 64 or 128")

    @classmethod
    def of(cls, asked: "ExpertQuantisation | ExpertQuantisationConfig") -> "ExpertQuantisationConfig":
        """From "int8" or "int4"; ConfigError for another name."""
        if isinstance(asked, cls):
            return asked
        if asked not in ("int8", "int4"):
            raise ConfigError(f"expert_quantization={asked!r} is not known; use 'int8', 'int4' or an {cls.__name__}")
        return cls(bits=int(str(asked)[3:]))

    def __str__(self) -> str:
        groups = "a scale for each row" if self.group_size is None else f"groups of {self.group_size}"
        return f"int{self.bits}, {groups}"


@register_quantizer(METHOD)
class ExpertQuantiser(HfQuantizer):
    """Puts `QuantisedExperts` in place of `Experts`, and quantises what is loaded into them if it is not yet."""

    quantization_config: ExpertQuantisationConfig

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse to round what is not kept; transformers asks when it knows where each module goes.

        Raises:
            ConfigError: full-precision weights are to stay on the disk.
        """
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ConfigError(
                "the model does not fit in memory, or its device_map names the disk, and what is offloaded there "
                "cannot be quantised while loading; run `moe-codegen quantise MIXTURE OUT` first, and load OUT"
            )

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether the checkpoint has this parameter in full precision."""
        path, _, name = param_name.rpartition(".")
        return (
            not self.pre_quantized
            and isinstance(model.get_submodule(path), QuantisedExperts)
            and name.endswith("_proj")
        )

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: torch.Tensor) -> float:
        """Bytes of each element once it is loaded, by which `device_map` finds a place."""
        return 1 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        """What loading applies to such a parameter."""
        return _Quantise(self.quantization_config)

    def is_serializable(self) -> bool:
        """Saving writes the parameters as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters beside the frozen experts train."""
        return True

    @property
    def is_compileable(self) -> bool:
        """One op in the graph."""
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        replace_experts(model, self.quantization_config)
        if not self.pre_quantized:
            # transformers before 5.23 casts what it loads to the dtype of the parameter it is for, then quantises it.
            for module in model.modules():
                if isinstance(module, QuantisedExperts):
                    module.await_weights(model.dtype)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, QuantisedExperts):
                module.freeze()
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        raise ConfigError("quantised experts have lost what they were; load the mixture that they were made from")


class _Quantise(ConversionOps):
    """One expert parameter of the model: its stored form and its scales."""

    def __init__(self, quantisation: ExpertQuantisationConfig) -> None:
        self.quantisation = quantisation

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        (name, value), *_ = input_dict.items()
        weight = value[0] if isinstance(value, list) else value
        stored, scales = quantise_weight(weight, self.quantisation.bits, self.quantisation.group_size)
        return {name: stored, name + SCALES: scales}


def replace_experts(model: PreTrainedModel, quantisation: ExpertQuantisationConfig) -> None:
    """Put empty `QuantisedExperts` in place of every `Experts` of `model`; ConfigError where it has none."""
    places = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    if not places:
        raise ConfigError(f"{type(model).__name__} has no experts of this library to quantise")
    for place in places:
        experts = model.get_submodule(place)
        model.set_submodule(place, QuantisedExperts(experts, quantisation.bits, quantisation.group_size))


def quantisation_of(config: PreTrainedConfig) -> ExpertQuantisationConfig | None:
    """How the experts of a mixture with this configuration are stored; None for full precision."""
    return _as_ours(getattr(config, "quantization_config", None))


def is_quantised_so(config: PreTrainedConfig, asked: Any) -> bool:
    """Whether the checkpoint of `config` is stored as the quantisation `asked` has it; False for full precision.

    Raises:
        ConfigError: its experts are quantised in another way.
    """
    stored = quantisation_of(config)
    if stored is not None and stored != _as_ours(asked):
        raise ConfigError(
            f"the checkpoint's experts are quantised already ({stored}), and {asked} was asked for; "
            "leave it out, or load the mixture that the checkpoint was made from"
        )
    return stored is not None


def _as_ours(found: Any) -> ExpertQuantisationConfig | None:
    """`found` in a configuration or an argument, as an object or its dictionary; None if it is not of this library."""
    if isinstance(found, dict) and found.get("quant_method") == METHOD:
        return ExpertQuantisationConfig.from_dict(found)
    return found if isinstance(found, ExpertQuantisationConfig) else None


def stored_model(config: MoEConfig) -> PreTrainedModel:
    """The causal model of `config` without memory, its parameters named, shaped and typed as its checkpoint's are."""
    model = empty_model(config)
    quantisation = quantisation_of(config)
    if quantisation is not None:
        with torch.device("meta"):
            replace_experts(model, quantisation)
    return model
