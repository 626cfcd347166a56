"""Every published layout reads as the model it holds; what does not belong is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.errors import CheckpointError
from tests.tiny import LAYOUTS, save_dense


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_the_canonical_weights(layout, tmp_path):
    model = save_dense(tmp_path, layout)
    dense = DenseCheckpoint(tmp_path)
    assert dense.layout.name == layout
    expected = dict(model.named_parameters())
    assert set(dense) == set(expected)
    for name, tensor in dense.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rule_of_a_layout_is_undone_by_its_inverse(layout, tmp_path):
    save_dense(tmp_path, layout)
    dense = DenseCheckpoint(tmp_path)
    for rule in dense.rules.values():
        stored = rule.transform.to_stored([dense[name] for name in rule.canonical], dense.config)
        for name, tensor in zip(rule.stored, stored, strict=True):
            assert torch.equal(tensor, dense.reader[name])


@pytest.mark.parametrize("layout", ["phi-msft", "santacoder"])
def test_an_old_config_says_what_the_canonical_one_says(layout, tmp_path):
    model = save_dense(tmp_path, layout)
    config = DenseCheckpoint(tmp_path).config
    changed = {
        key
        for key, value in model.config.to_dict().items()
        if config.to_dict().get(key) != value and key not in ("architectures", "transformers_version", "dtype")
    }
    assert not changed


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.fc1.bias"), "lacks model.layers.1.mlp.fc1.bias"),
        (lambda t: t.update(stranger=torch.ones(2)), "holds stranger"),
        (lambda t: t.update({"model.layers.0.mlp.fc1.weight": torch.ones(8, 8)}), "different models"),
        (lambda t: t.update({"model.layers.0.mlp.fc1.qweight": torch.ones(8, 8)}), "quantised"),
        (lambda t: t.update({"lm_head.bias": torch.ones(128, dtype=torch.int8)}), "quantised"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    save_dense(tmp_path, "phi")
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        DenseCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "supported families are gpt_bigcode, phi"),
        ({"model_type": None}, "of model_type ''; supported families"),
        ({"model_type": "moe_phi"}, "already a mixture"),
        ({"model_type": "phi-msft"}, "phi-msft checkpoint has no 'n_embd'"),
        ({"model_type": "gpt2"}, "plain GPT-2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"vocab_size": 100}, "different models"),
        ({"num_hidden_layers": 2}, "no place for"),
        ({"num_hidden_layers": 4}, "lacks"),
        ({"num_attention_heads": "4"}, "expected int, got str .*Correct it, or fetch it again"),
        ({"hidden_act": "swoosh"}, "config.json describes no phi model .*swoosh"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(fields, message, tmp_path):
    save_dense(tmp_path, "phi")
    edit_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        DenseCheckpoint(tmp_path)


def test_a_width_that_the_config_leaves_out_is_the_familys_own(tmp_path):
    save_dense(tmp_path, "gpt_bigcode")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["n_embd"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"asks for transformer.wte.weight \(128, 768\).* different models"):
        DenseCheckpoint(tmp_path)


def test_a_square_ffn_is_told_apart_by_the_fused_projection(tmp_path):
    model = save_dense(tmp_path, "santacoder-fused", n_inner=32)
    dense = DenseCheckpoint(tmp_path)
    assert dense.layout.name == "santacoder-fused"
    name = "transformer.h.1.mlp.c_fc.weight"
    assert torch.equal(dense[name], dict(model.named_parameters())[name])
