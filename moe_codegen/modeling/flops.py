"""What training costs, in floating-point operations of a token: the measure by which models are compared fairly.

Counted are the matrix products, a multiply and an add as two operations, of

    forward             2 N_active + 4 L H d c
    activation gradient 2 N_active + 8 L H d c
    weight gradient     2 N_trained

with N_active the weights of the matrices one token runs through (of the experts K of E; the output projection, also
where it is tied, but no embedding table, for looking up multiplies nothing), N_trained those of them that are trained,
L layers, H heads of d, and c = (S + 1) / 2 the mean number of positions a token attends to in a sequence of S. Where
everything is trained this is the usual 6 N_active (arXiv 2001.08361, section 2.1) and attention. Biases, norms,
activations, softmax and what is computed twice to save memory are not counted, nor that documents packed into one
sequence do not attend to one another.
"""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from moe_codegen.errors import ConfigError
from moe_codegen.modeling.configuration import MoEConfig
from moe_codegen.moe import Experts, TopKRouter
from moe_codegen.moe.packing import PackedExperts
from moe_codegen.moe.quantised import QuantisedExperts


def training_flops(model: PreTrainedModel, sequence_length: int) -> float:
    """Floating-point operations of training on one token, in sequences of `sequence_length`.

    Only shapes and `requires_grad` are read, so a model without memory (`empty_model`) will do; packed and quantised
    experts cost what they did.

    Raises:
        ConfigError: a mixture of transformers' own, whose experts are not counted.
    """
    config = model.config
    matrices = list(_matrices(model))
    active = sum(share * size for share, size, _ in matrices)
    trained = sum(share * size for share, size, is_trained in matrices if is_trained)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    context = (sequence_length + 1) / 2
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * context
    return 4 * active + 2 * trained + 3 * attention


def _matrices(model: PreTrainedModel) -> Iterator[tuple[float, int, bool]]:
    """(share of the tokens that run through it, number of weights, whether it is trained) for every matrix."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield 1.0, module.weight.numel(), module.weight.requires_grad
        elif isinstance(module, TopKRouter):
            for weight in (module.weight, module.noise_weight):
                if weight is not None:
                    yield 1.0, weight.numel(), weight.requires_grad
        elif isinstance(module, Experts | PackedExperts | QuantisedExperts) and isinstance(model.config, MoEConfig):
            share = model.config.num_experts_per_tok / model.config.num_experts
            per_element = 8 // module.bits if isinstance(module, QuantisedExperts) else 1
            for name, weight in module.named_parameters(recurse=False):
                if name.endswith("_proj"):
                    yield share, weight.numel() * per_element, weight.requires_grad
        elif isinstance(module, PackedExperts) or hasattr(module, "is_transposed"):  # transformers' decorator sets it
            raise ConfigError(
                f"{type(model).__name__} has experts that are not this library's, and what they cost is not known; "
                "give a dense model, or a mixture made with `moe-codegen upcycle`"
            )
