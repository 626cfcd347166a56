"""Counts agree with real models, and with what is published of the checkpoints this library is for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPTBigCodeConfig, PhiConfig

from moe_codegen import MoEConfig, MoEForCausalLM
from moe_codegen.modeling.parameters import count_parameters, parameter_shapes
from tests.tiny import FAMILIES, dense_model

SANTACODER = dict(vocab_size=49280, n_positions=2048, n_embd=2048, n_layer=24, n_head=16, n_inner=8192)
PHI_2 = dict(vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32)


@pytest.mark.parametrize(
    ("config", "published"),
    [(GPTBigCodeConfig(**SANTACODER), 1_124_886_528), (PhiConfig(**PHI_2), 2_779_683_840)],
    ids=["santacoder", "phi-2"],
)
def test_published_models_have_the_published_number_of_parameters(config, published):
    count = count_parameters(config)
    assert count.total == count.active == published


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_model_is_counted_as_torch_counts_it(family):
    model = dense_model(family)
    count = count_parameters(model.config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.active == count.total
    assert count.parts.keys() == {"embeddings", "attention", "dense FFN", "norms"}


@settings(max_examples=20, deadline=None)
@given(
    family=st.sampled_from(list(FAMILIES)),
    experts=st.integers(2, 6),
    layers=st.sampled_from([None, [0], [0, 2]]),
    shared=st.booleans(),
    data=st.data(),
)
def test_a_mixture_has_as_many_active_parameters_as_one_token_touches(family, experts, layers, shared, data):
    top_k = data.draw(st.integers(2, experts))
    config = MoEConfig.from_dense(
        dense_model(family).config,
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_layers=layers,
        shared_expert=shared,
    )
    model = MoEForCausalLM(config)
    count = count_parameters(config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    idle = sum(
        parameter[0].numel() * (experts - top_k) for name, parameter in model.named_parameters() if ".experts." in name
    )
    assert count.total - count.active == idle
    assert sum(total for total, _ in count.parts.values()) == count.total
    assert ("shared expert" in count.parts) == shared


def test_only_what_takes_part_gets_a_gradient():
    config = MoEConfig.from_dense(dense_model("phi").config, num_experts=5, num_experts_per_tok=2)
    model = MoEForCausalLM(config).eval()
    model(input_ids=torch.tensor([[3]])).logits.sum().backward()
    touched = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            touched += sum(grad.numel() for grad in parameter.grad if grad.any())
        else:
            touched += parameter.numel()
    assert touched == count_parameters(config).active


def test_shapes_are_those_of_the_real_model():
    model = dense_model("gpt_bigcode")
    assert parameter_shapes(model.config) == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert not any(
        p.is_meta for p in AutoModelForCausalLM.from_config(model.config).parameters()
    )  # the default device is left alone
