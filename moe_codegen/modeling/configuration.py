"""The configuration of a mixture: its dense family's fields, and these."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from moe_codegen.architectures import ARCHITECTURES, MIXTURE_PREFIX, Architecture, is_mixture
from moe_codegen.checkpoint import refuse_adapters
from moe_codegen.errors import ConfigError
from moe_codegen.modeling.auto_map import MODULE, auto_map_of, module_of
from moe_codegen.settings import check_types


class MoEConfig(PreTrainedConfig):
    """What a mixture adds to the configuration of its dense family; flat, as transformers' own MoE models have it.

    `MoEConfig(family="phi", num_experts=8, hidden_size=...)` gives the configuration class of that family;
    `MoEConfig.from_dense(config, num_experts=8)` takes a dense configuration's fields over;
    `MoEConfig.from_pretrained(path)` reads one.

    Attributes:
        num_experts: E, experts in each sparse layer.
        num_experts_per_tok: K, experts that take each token.
        moe_intermediate_size: F, an expert's hidden size; None means the dense FFN's.
        moe_layers: indices of the sparse layers; None means all.
        norm_topk_prob: whether the K weights are renormalised to sum to one.
        router_type: "top_k", or "noisy_top_k" (arXiv 1701.06538).
        router_jitter_noise: eps of Switch's multiplicative jitter on the router's input, in training.
        router_logit_scale: lambda of gate-logit normalisation (arXiv 2406.06563); 0 leaves the logits as they are.
        language_routing: whether the router is told each token's language (`language_ids`): "none"; "prior", a learned
            row added to its logits; or "oracle", where every token goes to the expert that bears its language's name.
        language_prior_init: what a new prior adds to the logit of the language's own expert.
        shared_expert: whether the dense FFN stays as an expert that takes every token.
        shared_expert_weight: its share of the output, between 0 and 1.
        router_aux_loss_coef: weight of the load-balancing loss (arXiv 2101.03961, eq. 4-6).
        router_z_loss_coef: weight of the router z-loss (arXiv 2202.08906, eq. 5).
        recompute_experts: whether our expert kernels keep only their input for the backward pass.
        output_router_logits: whether outputs carry the router's logits.
        expert_names: what the experts are, such as languages; None for unnamed ones.
        expert_granularity: into how many experts each dense FFN was split; `extract` puts them together again.
        source: the dense checkpoint's layout and its `config.json`, so that `extract` can write the like.

    Raises:
        ConfigError: values that cannot hold, such as more experts per token than experts.
    """

    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None
    moe_layers: list[int] | None = None
    norm_topk_prob: bool = True
    router_type: Literal["top_k", "noisy_top_k"] = "top_k"
    router_jitter_noise: float = 0.0
    router_logit_scale: float = 0.0
    language_routing: Literal["none", "prior", "oracle"] = "none"
    language_prior_init: float = 1.0
    shared_expert: bool = False
    shared_expert_weight: float = 0.5
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.001
    recompute_experts: bool = False
    output_router_logits: bool = False
    expert_names: list[str] | None = None
    expert_granularity: int = 1
    source: dict[str, Any] | None = None

    # Each family's class says which it is of.
    architecture: ClassVar[Architecture]

    def __new__(cls, *args: Any, family: str | None = None, **fields: Any) -> "MoEConfig":
        """The configuration class of `family` where `MoEConfig` itself is called."""
        if cls is MoEConfig and family is not None:
            cls = config_class_of(family)
        return super().__new__(cls)

    def __post_init__(self, family: str | None = None, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if type(self) is MoEConfig:
            raise ConfigError(f"MoEConfig needs family=, one of {', '.join(ARCHITECTURES)}")
        if family not in (None, self.architecture.family):
            raise ConfigError(f"{type(self).__name__} is of the family {self.architecture.family}, not {family}")
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.architecture.ffn.width_of(self)
        self.auto_map = auto_map_of(self.architecture.class_prefix)
        self.check()
        if self.moe_layers is not None:
            self.moe_layers = sorted(self.moe_layers)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "MoEConfig":
        """Read the configuration of a mixture from a folder or the hub.

        Raises:
            ConfigError: it is not the configuration of a mixture of this library, or holds what cannot be.
            CheckpointError: the folder holds adapters and no model.
        """
        if cls is not MoEConfig:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        refuse_adapters(Path(str(pretrained_model_name_or_path)))
        try:
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        except StrictDataclassError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the config.json of {pretrained_model_name_or_path}: {reason}; correct it") from error
        found = config[0] if isinstance(config, tuple) else config
        if not isinstance(found, MoEConfig):
            raise ConfigError(
                f"{pretrained_model_name_or_path} is a {found.model_type} model, not a mixture of this library; "
                f"make one with `moe-codegen upcycle {pretrained_model_name_or_path} OUT`"
            )
        return config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MoEConfig":
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: the dictionary is another model's.
        """
        if cls is not MoEConfig:
            return super().from_dict(config_dict, **kwargs)
        model_type = str(config_dict.get("model_type"))
        if not is_mixture(config_dict):
            raise ConfigError(
                f"a configuration of model_type {model_type!r} is not a mixture's; "
                "make one from a dense model's with MoEConfig.from_dense(config, num_experts=8)"
            )
        return config_class_of(model_type.removeprefix(MIXTURE_PREFIX)).from_dict(config_dict, **kwargs)

    @classmethod
    def from_dense(cls, config: PreTrainedConfig, **fields: Any) -> "MoEConfig":
        """The mixture with every field of the dense `config`, and `fields` of its own.

        Raises:
            ConfigError: the family is not supported, or the fields cannot hold.
        """
        dense = config.to_dict()
        for field in ("model_type", "architectures", "transformers_version", "auto_map"):
            dense.pop(field, None)
        return config_class_of(config.model_type)(**{**dense, **fields})

    def to_json_file(self, json_file_path: Any, *args: Any, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the file that its `auto_map` names."""
        # Here and not in `save_pretrained`, which uploads, if it is asked to, what was written since it was called.
        super().to_json_file(json_file_path, *args, **kwargs)
        Path(json_file_path).with_name(f"{MODULE}.py").write_text(module_of(self.architecture.class_prefix))

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: a class registered like this would have its source copied beside every configuration saved."""

    @property
    def sparse_layers(self) -> list[int]:
        """Indices of the layers whose FFN is a mixture."""
        return list(range(self.num_hidden_layers)) if self.moe_layers is None else self.moe_layers

    def language_ids(self, languages: Sequence[str]) -> list[int]:
        """For each language, what `language_ids` says of its tokens: the place in `expert_names`, or -1."""
        names = self.expert_names or []
        return [names.index(language) if language in names else -1 for language in languages]

    def check(self) -> None:
        """Raise ConfigError unless the fields hold together; a model checks again, for fields can be set."""
        check_types(self, FIELD_TYPES)
        experts, top_k = self.num_experts, self.num_experts_per_tok
        if experts < 1:
            raise ConfigError(f"num_experts={experts}: a mixture needs at least one expert")
        if self.moe_intermediate_size is not None and self.moe_intermediate_size < 1:
            raise ConfigError(f"moe_intermediate_size={self.moe_intermediate_size}: an expert needs at least one unit")
        if not 1 <= top_k <= experts:
            raise ConfigError(
                f"num_experts_per_tok={top_k} must lie between 1 and num_experts={experts}; lower it or add experts"
            )
        if top_k == 1 and self.norm_topk_prob and experts > 1 and self.language_routing != "oracle":
            raise ConfigError(
                "num_experts_per_tok=1 with norm_topk_prob=True makes every weight 1, and a constant teaches the "
                "router nothing; set norm_topk_prob=False (Switch routing) or num_experts_per_tok=2"
            )
        if self.router_type not in ("top_k", "noisy_top_k"):
            raise ConfigError(f"router_type={self.router_type!r} is not known; use 'top_k' or 'noisy_top_k'")
        if not 0 <= self.router_jitter_noise < 1:
            raise ConfigError(f"router_jitter_noise={self.router_jitter_noise} must lie between 0 and 1, such as 0.01")
        if not 0 <= self.shared_expert_weight <= 1:
            raise ConfigError(f"shared_expert_weight={self.shared_expert_weight} must lie between 0 and 1")
        layers = sorted(self.sparse_layers)
        if not layers or len(set(layers)) < len(layers) or not 0 <= layers[0] <= layers[-1] < self.num_hidden_layers:
            raise ConfigError(
                f"moe_layers={layers} must name different layers between 0 and {self.num_hidden_layers - 1}, "
                "at least one"
            )
        split = self.expert_granularity
        if split < 1 or experts % split or top_k % split:
            raise ConfigError(
                f"expert_granularity={split} must divide num_experts={experts} and num_experts_per_tok={top_k}: "
                "the pieces of one FFN are chosen together"
            )
        if self.router_logit_scale < 0:
            raise ConfigError(f"router_logit_scale={self.router_logit_scale} must be 0 or positive, such as 1.0")
        self._check_language_routing()
        names = self.expert_names
        if names is not None and len(names) * split != experts:
            raise ConfigError(f"{len(names)} expert_names for {experts // split} experts; give one for each")
        if names is not None and (len(set(names)) < len(names) or "" in names):
            raise ConfigError(f"expert_names={names} must all differ, and none be empty; give each expert its own name")

    def _check_language_routing(self) -> None:
        kind = self.language_routing
        if kind not in ("none", "prior", "oracle"):
            raise ConfigError(f"language_routing={kind!r} is not known; use 'none', 'prior' or 'oracle'")
        if kind != "none" and not self.expert_names:
            raise ConfigError(
                f"language_routing={kind!r} needs expert_names, for languages are told apart by the experts' names; "
                "convert with `moe-codegen upcycle --experts NAME=PATH`"
            )
        if kind == "oracle" and self.num_experts_per_tok != self.expert_granularity:
            raise ConfigError(
                "language_routing='oracle' gives a token one expert, so num_experts_per_tok="
                f"{self.num_experts_per_tok} must be {self.expert_granularity}, the expert_granularity"
            )


# Of what a mixture adds to its family's fields, which transformers checks; a field of few values is judged in `check`.
FIELD_TYPES = {
    name: hint
    for name, hint in MoEConfig.__annotations__.items()
    if name not in ("architecture", "router_type", "language_routing")
}


def config_class_of(family: str) -> type[MoEConfig]:
    """The configuration class of the mixture over the dense `family`; ConfigError for an unknown one."""
    classes = {cls.architecture.family: cls for cls in MoEConfig.__subclasses__()}
    if family not in classes:
        raise ConfigError(f"no mixture is known for the family {family!r}; supported are {', '.join(classes)}")
    return classes[family]
