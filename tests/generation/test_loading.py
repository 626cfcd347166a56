"""Any causal language model with a tokenizer beside it can be run and evaluated."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moe_codegen import MoEForCausalLM
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.generation import load_model
from tests import tiny


@pytest.mark.parametrize(
    ("model_type", "shape"),
    [
        ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=128)),
        ("gpt_neox", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)),
    ],
)
def test_a_causal_model_of_another_family_is_loaded_as_transformers_loads_it(model_type, shape, tmp_path):
    config = AutoConfig.for_model(model_type, vocab_size=tiny.VOCABULARY, bos_token_id=0, eos_token_id=0, **shape)
    saved = AutoModelForCausalLM.from_config(config).eval()
    saved.save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    model, tokenizer = load_model(tmp_path, device="cpu")
    ids = torch.tensor([tokenizer("def f").input_ids])
    assert torch.equal(model(ids).logits, saved(ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "transformers cannot load .*model type `None`"),
        ({"model_type": "of-next-year"}, "transformers cannot load .*of-next-year"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "transformers cannot load .*(?i:gptq)"),
    ],
)
def test_what_transformers_cannot_load_is_an_error_of_ours(changes, message, tmp_path):
    tiny.save_dense(tmp_path / "model", "llama")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("device", ["foo", "xpu:99", "meta"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded(device):
    with pytest.raises(ConfigError, match=rf"device='{device}' cannot be used here .*; give cpu"):
        load_model("nobody/nothing", device=device)


def test_adapters_are_not_taken_for_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for load in (load_model, MoEForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError, match=r"merge_and_unload\(\)"):
            load(tmp_path)
