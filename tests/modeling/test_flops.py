"""The count of training FLOPs, against torch's own counter of what is multiplied."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig

from moe_codegen import MoEForCausalLM
from moe_codegen.architectures.dense import empty_model
from moe_codegen.errors import ConfigError
from moe_codegen.modeling.flops import training_flops
from moe_codegen_kernels.cpu import compiled
from tests.modeling.mixture import mixture
from tests.tiny import FAMILIES, dense_model

BATCH, LENGTH = 2, 12


def counted(model):
    """FLOPs a token that torch counts in one forward and backward pass, everything in eager operations."""
    model.set_attn_implementation("eager")
    ids = torch.randint(1, 100, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops() / (BATCH * LENGTH)


def attention(model):
    """What torch counts for attention beyond the formula: it multiplies future positions too."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 12 * config.num_hidden_layers * config.num_attention_heads * head_dim * (LENGTH - 1) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_model_costs_what_torch_counts(family):
    model = dense_model(family).train()
    assert training_flops(model, LENGTH) + attention(model) == pytest.approx(counted(model), rel=0.01)


@pytest.mark.parametrize("family", ["gpt_bigcode", "llama"])
def test_a_mixture_costs_its_chosen_experts_and_its_router(family):
    model = mixture(family, num_experts=4, num_experts_per_tok=2, moe_layers=[0, 2]).train()
    model.set_experts_implementation("eager")
    assert training_flops(model, LENGTH) + attention(model) == pytest.approx(counted(model), rel=0.01)


@pytest.mark.parametrize("form", [dict(pack_experts=True), *(dict(expert_quantization=f"int{b}") for b in (8, 4))])
def test_packed_and_quantised_experts_are_counted_too(form, tmp_path):
    if "pack_experts" in form and compiled.panel_width() == 0:
        pytest.skip("the CPU kernel is not compiled here")
    model = mixture("gpt_bigcode", dense={"n_embd": 64, "n_inner": 96})
    model.save_pretrained(tmp_path)
    model.requires_grad_(False)
    loaded = MoEForCausalLM.from_pretrained(tmp_path, **form).requires_grad_(False)
    assert training_flops(loaded, LENGTH) == training_flops(model, LENGTH)


def test_experts_that_are_not_ours_are_not_passed_over():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    model = empty_model(MixtralConfig(vocab_size=128, hidden_size=64, intermediate_size=96, **sizes))
    with pytest.raises(ConfigError, match="MixtralForCausalLM has experts that are not this library's"):
        training_flops(model, LENGTH)


def test_what_is_frozen_costs_no_weight_gradient():
    model = mixture("phi", num_experts=4)
    everything = training_flops(model, LENGTH)
    experts = sum(w.numel() for name, w in model.named_parameters() if ".experts." in name and "bias" not in name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".experts." not in name)
    assert everything - training_flops(model, LENGTH) == 2 * experts * 2 / 4
