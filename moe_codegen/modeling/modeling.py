"""`MoEForCausalLM`: a stock transformers model whose FFNs are mixtures of experts.

Each family's classes (`families.py`) put these bases before transformers' own, so that everything transformers does
for the dense model (attention, caches, generation, saving) it does for the mixture.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from moe_codegen.errors import ConfigError
from moe_codegen.modeling.configuration import MoEConfig
from moe_codegen.modeling.linear import Linear, use_own_linear
from moe_codegen.modeling.quantisation import ExpertQuantisationConfig, is_quantised_so
from moe_codegen.moe import Experts, SparseMoE, TopKRouter, load_balancing_loss, packing, router_z_loss
from moe_codegen.moe.implementation import NAME as OUR_IMPLEMENTATION
from moe_codegen.moe.router import own_expert

logger = logging.get_logger(__name__)

# What transformers calls the cache of keys and values in arguments and outputs; from 5.24 on it is `cache`.
CACHE = "cache" if "cache" in {field.name for field in fields(MoeCausalLMOutputWithPast)} else "past_key_values"


@dataclass
class MoECausalLMOutput(MoeCausalLMOutputWithPast):
    """Adds to transformers' output the router z-loss.

    `loss` is the language-model loss, in training plus `router_aux_loss_coef * aux_loss + router_z_loss_coef *
    z_loss`; both are means over the sparse layers, here without their coefficients. `lm_loss`, in training, is the
    language-model loss alone, to be looked at: it carries no gradient.
    """

    z_loss: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None


class MoEPreTrainedModel(PreTrainedModel):
    """What backbone and causal model share: initialisation, and the choice of expert implementation."""

    config: MoEConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TopKRouter):
            init.normal_(module.weight, std=self.config.initializer_range)
            if module.noise_weight is not None:
                init.zeros_(module.noise_weight)
            if module.language_prior is not None:
                languages, experts = module.language_prior.shape
                own = own_expert(torch.arange(languages), experts, module.granularity)
                init.copy_(module.language_prior, self.config.language_prior_init * own)
        elif isinstance(module, Experts):
            for name, parameter in module.named_parameters():
                if name.endswith("_bias"):
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=self.config.initializer_range)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, expert_quantization: Any = None, **kwargs: Any
    ) -> Any:
        """As transformers' `from_pretrained`, with `expert_quantization` as for `MoEForCausalLM`."""
        if expert_quantization is not None:
            kwargs["quantization_config"] = ExpertQuantisationConfig.of(expert_quantization)
        asked = kwargs.get("quantization_config")
        if asked is not None and is_quantised_so(_config_of(pretrained_model_name_or_path, kwargs), asked):
            kwargs.pop("quantization_config")  # transformers would warn that it goes by the checkpoint's own
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        packing.check_packed_stay(self, fn)  # else they refuse only after the modules before them are cast
        return super()._apply(fn, recurse)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for its decorator in the file of the class and remembers the answer on the dense parent.
        return True

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # transformers passes torch's function with its settings bound; torch's default is reentrant.
        settings = getattr(kwargs.get("gradient_checkpointing_func"), "keywords", {"use_reentrant": False})
        if enable and settings.get("use_reentrant") is not False:
            raise ConfigError(
                "reentrant checkpointing runs the layers without gradients first, and the router losses lose theirs; "
                'leave gradient_checkpointing_kwargs out, or set {"use_reentrant": False}'
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """The implementation to run; where none is asked for, ours."""
        return super().get_correct_experts_implementation(requested_experts or OUR_IMPLEMENTATION)


class MoEBackbone(MoEPreTrainedModel):
    """The stock backbone with the FFN of each sparse layer replaced."""

    def __init__(self, config: MoEConfig) -> None:
        config.check()
        super().__init__(config)
        ffn = config.architecture.ffn
        layers = self.get_submodule(config.architecture.layers.partition(".")[2])
        for index in config.sparse_layers:
            layer = layers.get_submodule(str(index))
            layer.mlp = SparseMoE(config, ffn, dense=layer.get_submodule("mlp"))
        use_own_linear(self)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *args: Any,
        language_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock model's arguments, and `language_ids` as for `MoEForCausalLM`."""
        if torch.compiler.is_compiling():
            self._install_capturing_hooks()
        if self.config.language_routing != "none":
            tokens_BS = input_ids if input_ids is not None else kwargs["inputs_embeds"][..., 0]
            self._tell_routers(language_ids, tokens_BS)
        return super().forward(input_ids, *args, **kwargs)

    @torch.compiler.assume_constant_result
    def _install_capturing_hooks(self) -> None:
        """What transformers does on first use, under a lock that a compiled forward cannot take: done while tracing.

        Not when the model is made, for a model with these hooks cannot be pickled.
        """
        maybe_install_capturing_hooks(self)

    def _tell_routers(self, language_ids: torch.Tensor | None, tokens_BS: torch.Tensor) -> None:
        """Set each router's `language_ids_T`; it stays until the next pass, for checkpointing routes once more."""
        if language_ids is None and self.config.language_routing == "oracle":
            raise ConfigError("language_routing='oracle' routes by language alone; pass language_ids, (B,) or (B, S)")
        if language_ids is not None:
            if self.training and language_ids.shape not in (tokens_BS.shape[:1], tokens_BS.shape):
                raise ConfigError(
                    f"language_ids of shape {tuple(language_ids.shape)} for tokens {tuple(tokens_BS.shape)}; "
                    "give (B,) or (B, S)"
                )
            language_ids = _of_tokens(language_ids, tokens_BS).reshape(-1)
        for module in self.modules():
            if isinstance(module, TopKRouter):
                module.language_ids_T = language_ids


class MoEForCausalLM(MoEPreTrainedModel, GenerationMixin):
    """A causal language model with token-routed experts in place of dense FFNs.

    `MoEForCausalLM(config)` and `MoEForCausalLM.from_pretrained(path)` give the class of the configuration's
    family; each of those is a `MoEForCausalLM` and also the stock transformers model of that family.
    """

    backbone_class: ClassVar[type[MoEBackbone]]

    def __new__(cls, config: PreTrainedConfig | None = None, *args: Any, **kwargs: Any) -> "MoEForCausalLM":
        """The class of the configuration's family where `MoEForCausalLM` itself is called."""
        # copy and pickle make an empty object of a family's class, without a configuration.
        return super().__new__(cls if config is None else cls._class_for(config))

    def __init__(self, config: MoEConfig) -> None:
        # Not the stock class's __init__, which would build its dense backbone first.
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.backbone_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=config.architecture.lm_head_bias)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, pack_experts: bool = False, **kwargs: Any
    ) -> "MoEForCausalLM":
        """As transformers' `from_pretrained`, for a folder or hub id that holds a mixture.

        Args:
            expert_quantization: "int8", "int4" or an `ExpertQuantisationConfig`: the experts' weights are rounded as
                they are loaded, one tensor at a time. A checkpoint saved from such a model is quantised already.
            pack_experts: pack them for inference on this processor, as `moe_codegen.pack_experts` does.

        Raises:
            ConfigError: it holds a dense model, or its experts cannot be quantised, or are in another way.
        """
        if cls is MoEForCausalLM:
            cls = cls._class_for(_config_of(pretrained_model_name_or_path, kwargs))
            return cls.from_pretrained(pretrained_model_name_or_path, *args, pack_experts=pack_experts, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if pack_experts:
            packing.pack_experts(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' `save_pretrained`; packed experts are written plain."""
        packed = packing.is_packed(self)
        if packed:
            packing.unpack_experts(self)  # where they are: the state dict would hold all of them a second time
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            if packed:
                packing.pack_experts(self)

    @classmethod
    def _class_for(cls, config: PreTrainedConfig) -> type["MoEForCausalLM"]:
        if cls is not MoEForCausalLM:
            return cls
        if not isinstance(config, MoEConfig):
            raise ConfigError(
                f"a {config.model_type} configuration is a dense model's; "
                "make a mixture's with MoEConfig.from_dense(config, num_experts=8)"
            )
        return next(family for family in cls.__subclasses__() if family.config_class is type(config))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        language_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MoECausalLMOutput:
        """The arguments of every transformers causal model, the cache among `kwargs`; `output_router_logits`; and for
        `language_routing` `language_ids`, (B,) or (B, S) int64: places in `expert_names`, below 0 for none of them. In
        `generate` the text goes on in the language of the prompt's last token.

        In training with `labels`, the load-balancing loss and the router z-loss are added to the loss without being
        asked for; without labels they are the caller's to add, from the outputs. In evaluation `loss` is the language
        model's alone.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            language_ids=language_ids,
            output_router_logits=output_router_logits or (self.training and labels is not None),
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])

        loss: torch.Tensor | None = None
        aux_loss: torch.Tensor | None = None
        z_loss: torch.Tensor | None = None
        lm_loss: torch.Tensor | None = None
        if labels is None and self.training and not output_router_logits and not torch.compiler.is_compiling():
            self._say_what_is_not_trained()
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        router_logits = outputs.get("router_logits")
        if router_logits:
            aux_loss, z_loss = self._router_losses(router_logits, attention_mask, length=hidden.shape[1])
            if self.training and labels is not None and loss is not None:
                penalty = self.config.router_aux_loss_coef * aux_loss + self.config.router_z_loss_coef * z_loss
                share = _share_of_batch(labels.to(loss.device), kwargs.get("num_items_in_batch"))
                lm_loss = loss.detach()
                loss = loss + penalty.to(loss.device) * share
        return MoECausalLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            z_loss=z_loss,
            lm_loss=lm_loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=router_logits if output_router_logits else None,
            **{CACHE: outputs.get(CACHE)},
        )

    def _say_what_is_not_trained(self) -> None:
        if torch.is_grad_enabled() and (self.config.router_aux_loss_coef > 0 or self.config.router_z_loss_coef > 0):
            logger.warning_once(
                "a training pass without labels (Trainer passes none with label_smoothing_factor or "
                "compute_loss_func): the router losses are not added to any loss, and the router may come to use few "
                "experts. Pass output_router_logits=True and add router_aux_loss_coef * aux_loss + router_z_loss_coef "
                "* z_loss, or set both coefficients to 0"
            )

    def _router_losses(
        self, router_logits: tuple[torch.Tensor, ...], attention_mask: Any, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over the layers of the load-balancing loss and of the z-loss, padding left out."""
        token_weights = None
        # `generate` with a static cache passes ready-made causal masks, which do not say what is padding.
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            # With a cache the mask also covers the tokens before these.
            token_weights = attention_mask[:, -length:].reshape(-1)
        device = router_logits[0].device
        balance, z = [], []
        for logits_TE in router_logits:
            weights_T = None if token_weights is None else token_weights.to(logits_TE.device)
            balance.append(load_balancing_loss(logits_TE, self.config.num_experts_per_tok, weights_T).to(device))
            z.append(router_z_loss(logits_TE, weights_T).to(device))
        return torch.stack(balance).mean(), torch.stack(z).mean()


def _config_of(checkpoint: Any, arguments: dict[str, Any]) -> PreTrainedConfig:
    """The configuration that `from_pretrained(checkpoint, **arguments)` would read, or was given."""
    config = arguments.get("config")
    if isinstance(config, PreTrainedConfig):
        return config
    where = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    named = {key: arguments[key] for key in where if key in arguments}
    return MoEConfig.from_pretrained(config or checkpoint, **named)


def _of_tokens(language_ids: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
    """The languages of these tokens, (B, S), from one for each row or from those of the tokens of a whole text.

    `generate` passes the prompt's at every step: with a cache for one new token, without for longer and longer texts.
    """
    length = tokens_BS.shape[1]
    language_BS = language_ids.view(len(tokens_BS), -1)[:, -length:]
    return torch.cat([language_BS, language_BS[:, -1:].expand(-1, length - language_BS.shape[1])], dim=1)


def _share_of_batch(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
    """The part of the whole batch's targets in this micro-batch, which is how much its router losses count.

    With gradient accumulation the language-model loss is a sum over micro-batches divided by all targets of the
    batch. Without the same share, the router losses would be added once for every micro-batch. Balance is a product
    of means, so what adds up is the micro-batches' own balance, and not exactly that of the whole batch.
    """
    if num_items_in_batch is None:
        return 1.0
    return (labels[..., 1:] != -100).sum() / torch.as_tensor(num_items_in_batch, device=labels.device)
