"""Saving, loading, copying, resizing."""

import copy
import json
import pickle

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from moe_codegen import MoEForCausalLM
from tests.modeling.mixture import IMPLEMENTATIONS, mixture, tokens
from tests.tiny import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = mixture(request.param, shared_expert=True, moe_layers=[0, 2], router_type="noisy_top_k")
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder, model


def test_shards_hold_every_parameter_once_under_its_own_name(saved):
    folder, model = saved
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert set(index["weight_map"]) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("loader", [MoEForCausalLM, AutoModelForCausalLM])
def test_every_loader_gives_the_model_that_was_saved(saved, loader):
    folder, model = saved
    loaded, report = loader.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is type(model)
    assert isinstance(loaded, MoEForCausalLM)
    assert not any(report.values())
    assert not loaded.training
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)


def test_the_backbone_loads_on_its_own_with_router_logits(saved):
    folder, model = saved
    backbone = AutoModel.from_pretrained(folder)
    assert type(backbone) is type(model.base_model)
    outputs = backbone(tokens(), output_router_logits=True)
    expected = model(tokens(), output_hidden_states=True, output_router_logits=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected.hidden_states[-1])
    torch.testing.assert_close(outputs.router_logits, expected.router_logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision_rounds_every_parameter(saved, dtype):
    folder, model = saved
    loaded = MoEForCausalLM.from_pretrained(folder, dtype=dtype)
    expected = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name].to(dtype)), name
    assert torch.isfinite(loaded(tokens()).logits).all()


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_a_device_map_places_the_model(saved, device_map):
    folder, model = saved
    loaded = MoEForCausalLM.from_pretrained(folder, device_map=device_map)
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)


def test_layers_that_do_not_fit_are_offloaded_whole(saved, tmp_path):
    folder, model = saved
    layers = model.config.architecture.layers
    places = {f"{model.base_model_prefix}.{name}": "cpu" for name, _ in model.base_model.named_children()}
    del places[layers]
    places |= {f"{layers}.0": "cpu", f"{layers}.1": "cpu", f"{layers}.2": "disk", "lm_head": "cpu"}
    loaded = MoEForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    assert loaded.get_submodule(f"{layers}.2.mlp.gate").weight.is_meta
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_expert_implementation_can_be_chosen_on_loading_and_later(saved, implementation):
    folder, model = saved
    loaded = MoEForCausalLM.from_pretrained(folder, experts_implementation=implementation)
    assert loaded.config._experts_implementation == implementation
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)
    loaded.set_experts_implementation("eager")
    assert loaded.base_model.config._experts_implementation == "eager"


def test_an_expert_implementation_is_set_even_if_the_dense_model_was_made_first(saved):
    # transformers caches on the dense parent whether it can be set, and a subclass inherits the answer.
    _, model = saved
    dense = next(base for base in type(model).__mro__ if not issubclass(base, MoEForCausalLM))
    dense._can_set_experts_implementation()
    again = type(model)(copy.deepcopy(model.config))
    again.set_experts_implementation("batched_mm")
    assert again.config._experts_implementation == "batched_mm"
    with pytest.raises(ValueError, match="not supported"):
        again.set_experts_implementation("nonsense")


def test_the_chosen_implementation_is_the_one_that_runs(saved, monkeypatch):
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    _, model = saved
    model = copy.deepcopy(model)
    called = []
    plain = ALL_EXPERTS_FUNCTIONS["batched_mm"]
    monkeypatch.setitem(
        ALL_EXPERTS_FUNCTIONS, "batched_mm", lambda *args, **kwargs: called.append(1) or plain(*args, **kwargs)
    )
    model.set_experts_implementation("batched_mm")
    model(tokens())
    assert len(called) == 2


def test_a_saved_model_does_not_fix_the_implementation_and_ours_is_taken(saved):
    folder, model = saved
    assert model.config._experts_implementation == "moe_codegen"
    assert not [key for key in json.loads((folder / "config.json").read_text()) if "implementation" in key]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_the_same_model_and_stands_on_its_own(family, copied):
    model = mixture(family)
    again = copied(model)
    assert type(again) is type(model)
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert model(tokens()).logits.any()


def test_embeddings_can_be_resized(saved):
    _, model = saved
    model = copy.deepcopy(model)
    before = model(tokens()).logits
    model.resize_token_embeddings(140, mean_resizing=False)
    logits = model(tokens(), labels=tokens()).logits
    assert logits.shape[-1] == model.config.vocab_size == 140
    torch.testing.assert_close(logits[..., :128], before)
    assert model.train()(tokens(), labels=torch.full((2, 12), 139)).loss.isfinite()


def test_tied_embeddings_stay_tied_after_loading(tmp_path):
    model = mixture("gpt_bigcode")
    model.save_pretrained(tmp_path)
    loaded = MoEForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_starts_with_small_weights_and_biases_of_zero(family):
    config = mixture(family, router_type="noisy_top_k").config
    torch.manual_seed(0)
    model = MoEForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("_bias") or "noise_weight" in name:
            assert not parameter.any(), name
        elif ".experts." in name or name.endswith("mlp.gate.weight"):
            assert parameter.std().item() == pytest.approx(model.config.initializer_range, rel=0.2), name
