"""Any causal language model with a tokenizer beside it can be run and evaluated."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

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
