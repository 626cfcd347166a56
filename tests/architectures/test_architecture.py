"""What the table says of a family is what transformers' model of it is."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from moe_codegen.architectures import ARCHITECTURES
from tests.tiny import FAMILIES, dense_model


def test_every_family_is_in_the_table():
    assert set(ARCHITECTURES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ffn_is_where_the_table_says_and_reads_the_norm_it_names(family):
    architecture, model = ARCHITECTURES[family], dense_model(family)
    layer = model.get_submodule(architecture.layer(1))
    seen = {}
    layer.get_submodule(architecture.norm).register_forward_hook(lambda *call: seen.update(norm=call[-1]))
    layer.get_submodule("mlp").register_forward_hook(lambda *call: seen.update(ffn=call[1][0]))
    model(torch.arange(5, 12)[None])
    assert torch.equal(seen["norm"], seen["ffn"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ffn_is_made_of_what_the_table_names(family):
    architecture, model = ARCHITECTURES[family], dense_model(family)
    ffn, mlp = architecture.ffn, model.get_submodule(architecture.layer(1)).mlp
    shapes = {name: tuple(p.shape) for name, p in mlp.named_parameters()}
    rows = 80 * ffn.inner_matrices // len(ffn.inner)
    expected = {f"{name}.weight": (rows, 32) for name in ffn.inner} | {f"{ffn.down}.weight": (32, 80)}
    if ffn.has_bias(model.config):
        expected |= {f"{name}.bias": (rows,) for name in ffn.inner} | {f"{ffn.down}.bias": (32,)}
    assert shapes == expected
    assert ffn.width_of(model.config) == 80
    assert any(isinstance(module, nn.Dropout) for module in mlp.modules()) == (
        ffn.dropout is not None and family != "starcoder2"  # which calls the function instead
    )
    assert (model.lm_head.bias is not None) == architecture.lm_head_bias


@pytest.mark.parametrize("family", FAMILIES)
def test_the_activation_is_the_one_the_config_names(family):
    architecture, model = ARCHITECTURES[family], dense_model(family)
    named = getattr(model.config, architecture.ffn.activation)
    mlp = model.get_submodule(architecture.layer(0)).mlp
    (activation,) = [module for name, module in mlp.named_children() if name in ("act", "act_fn", "activation_fn")]
    assert type(activation) is type(ACT2FN[named])
