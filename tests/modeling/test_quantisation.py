"""Quantised experts: at load, saved and loaded again, in every use a model has, and what is refused."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from moe_codegen import MoEForCausalLM
from moe_codegen.errors import ConfigError
from moe_codegen.modeling import ExpertQuantisationConfig
from moe_codegen.modeling.quantisation import stored_model
from moe_codegen.moe import is_packed
from moe_codegen.moe.quantised import QuantisedExperts
from moe_codegen_kernels import dequantise, quantise_weight
from tests.modeling.mixture import mixture, relative_error, tokens

WIDE = {  # experts whose rows are whole blocks of 32
    "gpt_bigcode": dict(n_inner=96),
    "phi": dict(intermediate_size=96),
    "llama": dict(intermediate_size=96),
}
FORMATS = {"int8": (8, None), "int4": (4, 32)}


def save(family, folder):
    model = mixture(family, dense=WIDE[family], moe_layers=[0, 2])
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder, model


@pytest.fixture(scope="module", params=WIDE)
def saved(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One family's, for what does not depend on it."""
    return save("gpt_bigcode", tmp_path_factory.mktemp("one"))[0]


def rounded(model, bits, group_size):
    """A copy of `model` in full precision whose experts hold what the format keeps of them."""
    state = {
        name: dequantise(*quantise_weight(tensor, bits, group_size)) if name.endswith("_proj") else tensor
        for name, tensor in model.state_dict().items()
    }
    again = type(model)(model.config).eval()
    again.load_state_dict(state)
    return again


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_quantised_at_load_is_the_model_of_the_rounded_weights(saved, name):
    folder, model = saved
    loaded, report = MoEForCausalLM.from_pretrained(folder, expert_quantization=name, output_loading_info=True)
    assert not any(report.values())
    assert sum(isinstance(module, QuantisedExperts) for module in loaded.modules()) == 2
    expected = rounded(model, *FORMATS[name])(tokens()).logits
    assert relative_error(loaded(tokens()).logits, expected) < 1e-4
    assert relative_error(loaded(tokens()).logits, model(tokens()).logits) > 1e-3


def test_device_map_counts_the_bytes_that_the_experts_will_have(folder):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8")
    needed = sum(p.nbytes for p in model.parameters())
    room = {"cpu": int(1.5 * needed)}  # in float32 the experts alone take more
    placed = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8", device_map="auto", max_memory=room)
    assert torch.equal(placed(tokens()).logits, model(tokens()).logits)


def test_quantised_weights_can_be_offloaded_to_the_disk_and_others_not_while_they_are_quantised(folder, tmp_path):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8")
    model.save_pretrained(tmp_path / "quantised")
    layers = {f"transformer.h.{layer}": place for layer, place in enumerate(("cpu", "disk", "disk"))}
    others = dict.fromkeys(("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"), "cpu")
    for where in ({"device_map": layers | others}, {"device_map": "auto", "max_memory": {"cpu": "50KB"}}):
        where["offload_folder"] = str(tmp_path / "offloaded")
        with pytest.raises(ConfigError, match="`moe-codegen quantise MIXTURE OUT` first"):
            MoEForCausalLM.from_pretrained(folder, expert_quantization="int8", **where)
        placed = MoEForCausalLM.from_pretrained(tmp_path / "quantised", **where)
        assert "disk" in placed.hf_device_map.values()
        assert torch.equal(placed(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("loader", [MoEForCausalLM, AutoModelForCausalLM])
def test_saved_in_shards_it_loads_by_itself_with_the_same_bits(saved, name, loader, tmp_path):
    folder, _ = saved
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization=name, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    loaded, report = loader.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(report.values())
    assert {n: p.dtype for n, p in loaded.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if ".experts." in n)


def test_the_experts_take_an_eighth_of_their_float32_bytes_and_their_scales(folder):
    loaded = MoEForCausalLM.from_pretrained(folder, expert_quantization="int4")
    for name, parameter in MoEForCausalLM.from_pretrained(folder).named_parameters():
        if name.endswith("_proj"):
            stored, scales = loaded.get_parameter(name), loaded.get_parameter(name + "_scales")
            assert stored.nbytes * 8 == parameter.nbytes
            assert scales.nbytes * 64 == parameter.nbytes


def test_the_checkpoints_names_and_shapes_are_known_without_loading(folder, tmp_path):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int4")
    empty = stored_model(model.config)
    assert {n: (p.shape, p.is_meta) for n, p in empty.named_parameters()} == {
        n: (p.shape, True) for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_generates_with_a_cache_what_it_does_without(folder, dtype):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8", dtype=dtype)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    cached, plain = (model.generate(tokens(1), use_cache=cache, **settings) for cache in (True, False))
    assert torch.equal(cached, plain)


def test_a_forward_is_one_graph(folder):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int4")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(tokens()).logits, model(tokens()).logits) < 1e-5


def test_adapters_on_attention_train_as_over_the_rounded_weights(saved, tmp_path):
    peft = pytest.importorskip("peft")
    folder, model = saved
    targets = ["c_attn"] if "gpt" in model.config.model_type else ["q_proj", "v_proj"]

    def gradients(base):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        adapted.eval()(input_ids=tokens(), labels=tokens()).loss.backward()
        return {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}

    actual = gradients(MoEForCausalLM.from_pretrained(folder, expert_quantization="int8"))
    expected = gradients(rounded(model, 8, None))
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert relative_error(gradient, expected[name]) < 1e-3, name


def test_adapters_on_the_quantised_experts_are_refused_and_not_rounded_away(folder):
    peft = pytest.importorskip("peft")
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8")
    model = peft.get_peft_model(model, peft.LoraConfig(target_parameters=["mlp.experts.down_proj"], target_modules=[]))
    with pytest.raises(ConfigError, match="down_proj is stored in 8 bits, and nothing can be added to it"):
        model(tokens())


def test_experts_cast_to_another_dtype_keep_their_scales(folder):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int4", dtype=torch.bfloat16)
    experts = next(module for module in model.modules() if isinstance(module, QuantisedExperts))
    inputs = (torch.randn(3, 32), torch.tensor([[0, 1], [2, 3], [3, 0]]), torch.rand(3, 2))
    assert torch.equal(experts(*inputs), experts.float()(*inputs))


def test_training_the_experts_is_refused(folder):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8").train()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with pytest.raises(ValueError, match="quantised experts are frozen"):
        model(input_ids=tokens(), labels=tokens())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: "int3", "expert_quantization='int3' is not known"),
        (lambda: ExpertQuantisationConfig(bits=2), "bits=2 is not supported"),
        (lambda: ExpertQuantisationConfig(bits=4, group_size=16), "group_size=16 is not supported with 4 bits"),
        (lambda: ExpertQuantisationConfig(bits=8, group_size=0), "group_size=0 is not supported"),
        (lambda: ExpertQuantisationConfig(bits=4, group_size=64), "rows of 32; choose one that does, such as 32"),
        (lambda: ExpertQuantisationConfig(bits=8, group_size=24), "rows of 32; choose one that does, such as 32"),
    ],
)
def test_what_cannot_be_is_refused_before_loading(folder, asked, message):
    with pytest.raises(ConfigError, match=message):
        MoEForCausalLM.from_pretrained(folder, expert_quantization=asked())


def test_a_quantised_checkpoint_cannot_be_quantised_in_another_way_by_any_class(folder, tmp_path):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8")
    model.save_pretrained(tmp_path)
    int8, int4 = (ExpertQuantisationConfig(bits=bits) for bits in (8, 4))
    for loader in (MoEForCausalLM, AutoModelForCausalLM, type(model), AutoModel):
        loader.from_pretrained(tmp_path, quantization_config=int8)
        with pytest.raises(
            ConfigError, match=r"quantised already \(int8, a scale for each row\), and int4, groups of 32"
        ):
            loader.from_pretrained(tmp_path, quantization_config=int4)


def test_a_dense_model_has_nothing_to_quantise(tmp_path):
    from tests.tiny import dense_model

    dense_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no experts of this library"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=ExpertQuantisationConfig())


def test_quantised_experts_need_no_packing(folder, caplog):
    model = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8", pack_experts=True)
    assert not is_packed(model)
    assert "stored in the order they are read" in caplog.text
    expected = MoEForCausalLM.from_pretrained(folder, expert_quantization="int8")
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, expected(tokens()).logits)
