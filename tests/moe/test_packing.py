"""`pack_experts`: the same model, in another order, that saves as it was."""

import copy
import weakref

import pytest
import torch
from safetensors import safe_open
from transformers import MixtralConfig, MixtralForCausalLM

from moe_codegen import MoEForCausalLM, pack_experts, unpack_experts
from moe_codegen.errors import ConfigError
from moe_codegen.moe import is_packed, packing
from moe_codegen_kernels.cpu import compiled
from tests.kernels.problems import relative_error
from tests.modeling.mixture import mixture, tokens

pytestmark = pytest.mark.skipif(compiled.panel_width() == 0, reason="the CPU kernel is not compiled here")

FAMILIES = {"gpt_bigcode": {"n_embd": 64, "n_inner": 96}, "llama": {"hidden_size": 64, "intermediate_size": 96}}


@pytest.fixture(params=FAMILIES)
def model(request):
    return mixture(request.param, dense=FAMILIES[request.param]).eval()


@torch.no_grad()
def logits(model):
    return model(tokens()).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_packed_model_computes_the_same(model, dtype):
    model = model.to(dtype)
    expected = logits(model)
    assert pack_experts(model) == len(model.config.sparse_layers)
    assert relative_error(logits(model), expected) < 8 * torch.finfo(dtype).eps  # sums in another order
    unpack_experts(model)
    assert torch.equal(logits(model), expected)


def test_packing_again_changes_nothing_and_warns_of_nothing(model, monkeypatch):
    pack_experts(model)
    said, packed = [], logits(model)
    monkeypatch.setattr(packing.logger, "warning_once", said.append)
    assert pack_experts(model) == 0
    assert not said
    assert torch.equal(logits(model), packed)


def test_unpacking_gives_back_every_parameter(model):
    before = copy.deepcopy(model.state_dict())
    pack_experts(model)
    assert is_packed(model)
    packed_state = model.state_dict()
    unpack_experts(model)
    assert not is_packed(model)
    for state in (packed_state, model.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("frozen_before", [True, False])
def test_what_is_frozen_stays_frozen(frozen_before, model):
    if frozen_before:
        model.requires_grad_(False)
    pack_experts(model)
    model.requires_grad_(False)
    unpack_experts(model)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_a_packed_model_takes_plain_weights_and_refuses_others(model):
    other = mixture(model.config.architecture.family, spread=0.5, dense=FAMILIES[model.config.architecture.family])
    expected = logits(other.eval())
    pack_experts(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(logits(model), expected)
    with pytest.raises(RuntimeError, match=r"size mismatch for .*down_proj"):
        model.load_state_dict({name: t[:1] if "down_proj" in name else t for name, t in other.state_dict().items()})


def test_experts_under_adapters_stay_and_are_named(model, monkeypatch):
    peft = pytest.importorskip("peft")
    said = []
    monkeypatch.setattr(packing.logger, "warning_once", said.append)
    settings = peft.LoraConfig(target_parameters=["mlp.experts.down_proj"], target_modules=[], lora_dropout=0.0)
    adapted = peft.get_peft_model(model, settings)
    expected = logits(adapted)
    assert pack_experts(adapted) == 0
    assert "merge_and_unload()" in said[0]
    assert torch.equal(logits(adapted), expected)


def test_each_plain_matrix_is_gone_before_the_next_is_packed(model, monkeypatch):
    plain = [weakref.ref(p) for name, p in model.named_parameters() if name.endswith("_proj") and p.dim() == 3]
    alive = []
    real = packing.pack_matrices
    monkeypatch.setattr(
        packing, "pack_matrices", lambda m: alive.append(sum(ref() is not None for ref in plain)) or real(m)
    )
    pack_experts(model)
    assert alive == list(range(len(plain), 0, -1))


def test_saving_writes_plain_weights_and_the_model_stays_packed(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    pack_experts(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert is_packed(model)
    assert torch.equal(logits(model), expected)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), before[name]) for name in file.keys())  # noqa: SIM118
        assert any("experts.down_proj" in name for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("loading_info", [False, True])
def test_packed_on_loading(model, tmp_path, loading_info):
    model.save_pretrained(tmp_path)
    loaded = MoEForCausalLM.from_pretrained(tmp_path, pack_experts=True, output_loading_info=loading_info)
    loaded = loaded[0] if loading_info else loaded
    assert is_packed(loaded)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_generation_and_fullgraph_compilation(model):
    expected = model.generate(tokens()[:1], max_new_tokens=5, do_sample=False)
    pack_experts(model)
    assert torch.equal(model.generate(tokens()[:1], max_new_tokens=5, do_sample=False), expected)
    torch.testing.assert_close(logits(torch.compile(model, fullgraph=True)), logits(model))


def test_training_and_moving_are_refused_with_what_to_do(model):
    pack_experts(model)
    with pytest.raises(ConfigError, match="unpack_experts"):
        model(tokens(), labels=tokens())
    with pytest.raises(ConfigError, match="unpack_experts"):
        model.to(torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.to("cpu")


def test_a_model_of_transformers_is_packed_too():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    config = MixtralConfig(vocab_size=128, hidden_size=64, intermediate_size=96, **sizes)
    model = MixtralForCausalLM(config).eval()
    expected = logits(model)
    assert pack_experts(model) == 1
    torch.testing.assert_close(logits(model), expected)


def test_weights_that_cannot_be_packed_stay_and_are_named(monkeypatch):
    said = []
    monkeypatch.setattr(packing.logger, "warning_once", said.append)
    model = mixture("gpt_bigcode", dense={"n_inner": 72})
    assert pack_experts(model) == 0
    assert "no multiple of the panel" in said[0]
