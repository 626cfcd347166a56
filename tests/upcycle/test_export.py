"""Exported, a mixture is a model of transformers' own that computes the same; what none computes is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralForCausalLM, Qwen2MoeForCausalLM, Qwen3MoeForCausalLM

from moe_codegen import MoEConfig, MoEForCausalLM, export, upcycle
from moe_codegen.errors import ConfigError
from tests.tiny import VOCABULARY, save_dense
from tests.upcycle.checkpoints import config_of, dense, headers_of

CLASSES = {
    "llama": MixtralForCausalLM,
    "mistral": MixtralForCausalLM,
    "qwen2": Qwen2MoeForCausalLM,
    "qwen3": Qwen3MoeForCausalLM,
}
DIFFERENT = dict(noise_std=0.5, router_std=0.5)


def exported(source, folder, **options):
    """The mixture of `source`, and what transformers makes of its export."""
    upcycle(source, folder / "moe", **DIFFERENT, **options)
    export(folder / "moe", folder / "out")
    theirs, loading = AutoModelForCausalLM.from_pretrained(folder / "out", dtype="auto", output_loading_info=True)
    assert not any(loading.values())
    return MoEForCausalLM.from_pretrained(folder / "moe", dtype="auto"), theirs


def assert_same(ours, theirs):
    ids = torch.arange(40).remainder(VOCABULARY).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CLASSES)
def test_it_computes_the_same(family, tmp_path):
    ours, theirs = exported(dense(family), tmp_path, num_experts=4)
    assert type(theirs) is CLASSES[family]
    assert_same(ours, theirs)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "moe" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layers_may_stay_dense_and_weights_as_the_softmax_has_them(family, tmp_path):
    ours, theirs = exported(dense(family), tmp_path, num_experts=3, layers="0,2", renormalise=False)
    assert_same(ours, theirs)


def test_qwen2_keeps_a_shared_expert_and_split_experts(tmp_path):
    ours, theirs = exported(dense("qwen2"), tmp_path, num_experts=4, granularity=2, shared_expert=True)
    assert_same(ours, theirs)


def test_tied_embeddings_and_scaled_positions_are_kept(tmp_path):
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    save_dense(tmp_path / "dense", "llama", tie_word_embeddings=True, rope_parameters=scaling)
    ours, theirs = exported(tmp_path / "dense", tmp_path, num_experts=2)
    assert_same(ours, theirs)
    assert "lm_head.weight" not in headers_of(tmp_path / "out")
    written = config_of(tmp_path / "out")
    assert (written["rope_theta"], written["rope_scaling"]) == (5000.0, {"rope_type": "linear", "factor": 4.0})


def test_the_files_are_as_mixtral_was_published(tmp_path):
    exported(dense("llama", torch.bfloat16), tmp_path, num_experts=2)
    found = headers_of(tmp_path / "out")
    expert = "model.layers.2.block_sparse_moe.experts.1"
    assert {name: found[f"{expert}.{name}.weight"].shape for name in ("w1", "w2", "w3")} == {
        "w1": (80, 32),
        "w2": (32, 80),
        "w3": (80, 32),
    }
    assert {header.dtype for header in found.values()} == {torch.bfloat16}
    written = config_of(tmp_path / "out")
    assert written["torch_dtype"] == "bfloat16"
    assert (written["num_local_experts"], written["num_experts_per_tok"]) == (2, 2)
    assert str(tmp_path) not in json.dumps(written)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("phi", {}, "layers of llama, mistral, qwen2, qwen3, and none with those of phi"),
        ("llama", dict(layers="0"), "some layers are dense"),
        ("llama", dict(renormalise=False), "not renormalised"),
        ("llama", dict(shared_expert=True), "a shared expert takes every token"),
        ("qwen3", dict(shared_expert=True), "a shared expert takes every token"),
    ],
)
def test_what_no_such_model_computes_is_refused_before_anything_is_written(family, options, reason, tmp_path):
    upcycle(dense(family), tmp_path / "moe", num_experts=2, **options)
    with pytest.raises(ConfigError, match=reason):
        export(tmp_path / "moe", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", [dict(router_logit_scale=1.0), dict(language_routing="prior", expert_names=["python", "java"])]
)
def test_routing_of_our_own_is_refused(change, tmp_path):
    upcycle(dense("qwen3"), tmp_path / "moe", num_experts=2)
    config = MoEConfig.from_pretrained(tmp_path / "moe", **change)
    MoEForCausalLM(config).save_pretrained(tmp_path / "changed")
    with pytest.raises(ConfigError, match="the router"):
        export(tmp_path / "changed", tmp_path / "out")
