"""What a dense family is to this library: where its FFN is, and what its transformers classes are called."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from moe_codegen.architectures.layout import Layout


@dataclass(frozen=True)
class FeedForward:
    """A family's dense FFN, the module `mlp` of each layer: `down(act(up(x)))`, or gated `down(act(gate(x)) * up(x))`.

    Attributes:
        inner: the linear layers that lead into the hidden width, in the order an expert stores their rows: the gate's
            first. One layer may hold both matrices of a gated FFN.
        down: the linear layer that leads back.
        gated: whether there is a gate.
        bias: whether they have biases, or the name of the config field that says so.
        width: the config field that holds the FFN's hidden size F.
        activation: the config field that names the activation.
        dropout: the config field of the dropout inside the FFN's module, after `down`; None if it is outside.
    """

    inner: tuple[str, ...]
    down: str
    gated: bool = False
    bias: bool | str = False
    width: str = "intermediate_size"
    activation: str = "hidden_act"
    dropout: str | None = None

    def has_bias(self, config: PreTrainedConfig) -> bool:
        """Whether the linear layers carry biases under `config`."""
        return bool(getattr(config, self.bias)) if isinstance(self.bias, str) else self.bias

    def width_of(self, config: PreTrainedConfig) -> int:
        """F, the FFN's hidden size; families that leave it out mean four times the model's."""
        return getattr(config, self.width) or 4 * config.hidden_size

    @property
    def inner_matrices(self) -> int:
        """How many (F, D) matrices the inner layers hold: the gate's and the other's, or one."""
        return 2 if self.gated else 1


@dataclass(frozen=True)
class Architecture:
    """One dense family that can be upcycled.

    Attributes:
        family: transformers' `model_type`.
        class_prefix: transformers' classes are `<prefix>Config`, `<prefix>Model`, `<prefix>ForCausalLM`.
        layers: the layers' path in the causal model, such as `model.layers`.
        norm: the module of a layer whose output enters the FFN.
        ffn: the FFN itself.
        layouts: how checkpoints of the family are stored; the first is the canonical one.
        lm_head_bias: whether the output projection has a bias.
    """

    family: str
    class_prefix: str
    layers: str
    norm: str
    ffn: FeedForward
    layouts: tuple[Layout, ...]
    lm_head_bias: bool = False

    def layer(self, index: int) -> str:
        """The path of layer `index`, such as `model.layers.3`."""
        return f"{self.layers}.{index}"
