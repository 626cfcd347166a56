"""The way back: what was made of copies comes back bit for bit, in its own layout; experts come out as they went in."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from moe_codegen import MoEConfig, MoEForCausalLM, extract, upcycle
from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.errors import CheckpointError, ConfigError, OutputError, ResumeError
from moe_codegen.upcycle.mapped import mapped_dense
from tests.tiny import FAMILIES, LAYOUTS, VOCABULARY, dense_model
from tests.upcycle.checkpoints import Steps, config_of, copy_of, dense, hashes_of, headers_of, same, tensors_of, tuned

MASKS = (".attn.bias", ".attn.masked_bias")
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_come_back_bit_for_bit_in_their_own_layout(layout, dtype, tmp_path):
    source = dense(layout, dtype)
    upcycle(source, tmp_path / "moe", num_experts=3)
    report = extract(tmp_path / "moe", tmp_path / "back")
    same(tmp_path / "back", source, but=MASKS)
    assert config_of(tmp_path / "back") == config_of(source)
    assert report.layout == layout
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_copies_come_back_whatever_the_mixture_looked_like(data, tmp_path_factory):
    layout = data.draw(st.sampled_from(["santacoder", "phi-fused", "llama", "phi3"]))
    dtype = data.draw(st.sampled_from(DTYPES))
    granularity = data.draw(st.sampled_from([1, 2, 4]))
    copies = data.draw(st.integers(2, 4))
    folder = tmp_path_factory.mktemp("any")
    upcycle(
        dense(layout, dtype),
        folder / "moe",
        num_experts=copies * granularity,
        top_k=2 * granularity,
        granularity=granularity,
        layers=sorted(data.draw(st.sets(st.integers(0, 2), min_size=1))),
        shared_expert=data.draw(st.booleans()),
        max_shard_size=data.draw(st.sampled_from(["20KB", "2GB"])),
    )
    expert = data.draw(st.one_of(st.none(), st.integers(0, copies - 1)))
    extract(folder / "moe", folder / "back", expert=expert, max_shard_size=data.draw(st.sampled_from(["9KB", "1GB"])))
    same(folder / "back", dense(layout, dtype), but=MASKS)


def test_a_granularity_that_is_no_power_of_two_says_that_it_rounds_and_is_close(tmp_path):
    report = upcycle(dense("phi"), tmp_path / "moe", num_experts=15, top_k=5, granularity=5)
    assert any("no power of two" in warning for warning in report.warnings)
    extract(tmp_path / "moe", tmp_path / "back")
    source = tensors_of(dense("phi"))
    for name, tensor in tensors_of(tmp_path / "back").items():
        torch.testing.assert_close(tensor, source[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["gpt_bigcode", "santacoder"])
def test_a_tied_weight_that_was_stored_twice_is_stored_twice_again(layout, tmp_path):
    def store_again(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    source = copy_of(dense(layout), tmp_path / "twice", store_again)
    upcycle(source, tmp_path / "moe", num_experts=2)
    assert "lm_head.weight" not in tensors_of(tmp_path / "moe")
    extract(tmp_path / "moe", tmp_path / "back")
    same(tmp_path / "back", source, but=MASKS)


def test_the_dense_checkpoint_loads_and_computes_in_transformers(tmp_path):
    upcycle(dense("llama", torch.float16), tmp_path / "moe", num_experts=2)
    extract(tmp_path / "moe", tmp_path / "back")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
        assert back.dtype == torch.float16
        expected = AutoModelForCausalLM.from_pretrained(dense("llama", torch.float16), dtype="auto")
        assert torch.equal(back(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("layout", ["phi", "phi-msft"])
def test_converted_to_another_dtype_the_config_says_so(layout, tmp_path):
    upcycle(dense(layout), tmp_path / "moe", num_experts=2, dtype="bfloat16")
    extract(tmp_path / "moe", tmp_path / "back")
    assert {header.dtype for header in headers_of(tmp_path / "back").values()} == {torch.bfloat16}
    expected = config_of(dense(layout))
    expected["torch_dtype" if "torch_dtype" in expected else "dtype"] = "bfloat16"
    assert config_of(tmp_path / "back") == expected


def test_a_mixture_that_was_loaded_grown_and_saved_again_comes_back_with_its_new_tokens(tmp_path):
    upcycle(dense("starcoder2"), tmp_path / "moe", num_experts=2)
    model = MoEForCausalLM.from_pretrained(tmp_path / "moe")
    model.resize_token_embeddings(VOCABULARY + 8)
    model.save_pretrained(tmp_path / "grown")
    extract(tmp_path / "grown", tmp_path / "back")
    assert config_of(tmp_path / "back")["vocab_size"] == VOCABULARY + 8
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "back").get_input_embeddings().weight) == VOCABULARY + 8


CHANGES = {  # layout -> what a mixture is given after it was made
    "llama": {
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "rms_norm_eps": 1e-3,
        "eos_token_id": 5,
        "use_cache": False,
    },
    "santacoder": {"layer_norm_epsilon": 1e-2, "eos_token_id": 5, "tie_word_embeddings": False},
    "phi-msft": {"eos_token_id": 5, "pad_token_id": 1, "use_cache": False},
}


@pytest.mark.parametrize(("layout", "changes"), CHANGES.items())
def test_what_was_set_since_the_conversion_comes_out_too(layout, changes, tmp_path):
    old_words = {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}} if layout == "llama" else {}
    source = copy_of(dense(layout), tmp_path / "source", **old_words)
    upcycle(source, tmp_path / "moe", num_experts=2)
    model = MoEForCausalLM.from_pretrained(tmp_path / "moe", **changes).eval()
    model.lm_head.weight = torch.nn.Parameter(1.5 * model.lm_head.weight)  # trained
    model.save_pretrained(tmp_path / "changed")
    extract(tmp_path / "changed", tmp_path / "back")
    back = mapped_dense(DenseCheckpoint(tmp_path / "back"))
    assert {key: getattr(back.config, key) for key in changes} == changes
    ids = torch.arange(60)[None]
    torch.testing.assert_close(back(ids).logits, model(ids).logits)


def test_a_setting_that_the_layout_has_no_word_for_is_refused(tmp_path):
    upcycle(dense("phi-msft"), tmp_path / "moe", num_experts=2)
    changed = copy_of(tmp_path / "moe", tmp_path / "changed", max_position_embeddings=256)
    with pytest.raises(ConfigError, match=r"max_position_embeddings is 256, its source's was 64, .* phi-msft"):
        extract(changed, tmp_path / "back")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_that_had_no_dense_source_comes_out_in_the_canonical_layout(family, tmp_path):
    config = MoEConfig.from_dense(dense_model(family).config, num_experts=2)
    MoEForCausalLM(config).save_pretrained(tmp_path / "moe")
    extract(tmp_path / "moe", tmp_path / "dense", expert=1)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.model_type == family


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """(mixture, its three checkpoints): base, first, second."""
    folder = tmp_path_factory.mktemp("joined")
    base = dense("phi-msft")
    experts = {name: tuned(base, folder / name, seed) for seed, name in enumerate(("first", "second"), 1)}
    experts = {"base": base, **experts}
    upcycle(base, folder / "moe", experts=experts)
    return folder / "moe", experts


@pytest.mark.parametrize(("asked", "name"), [("second", "second"), (2, "second"), ("0", "base"), ("first", "first")])
def test_one_expert_comes_out_as_it_went_in_by_name_or_number(asked, name, joined, tmp_path):
    mixture, experts = joined
    report = extract(mixture, tmp_path / "one", expert=asked)
    assert report.weights == {name: 1.0}
    theirs, base = tensors_of(experts[name]), tensors_of(experts["base"])
    for key, tensor in tensors_of(tmp_path / "one").items():
        assert torch.equal(tensor, (theirs if ".mlp." in key else base)[key]), key


def test_a_merge_weighs_the_experts_and_numbers_do_for_names(joined, tmp_path):
    mixture, experts = joined
    report = extract(mixture, tmp_path / "merge", weights={"first": 3, 2: 1, "base": 0})
    assert report.weights == {"first": 0.75, "second": 0.25}
    first, second = tensors_of(experts["first"]), tensors_of(experts["second"])
    for key, tensor in tensors_of(tmp_path / "merge").items():
        if ".mlp." in key:
            torch.testing.assert_close(tensor, 0.75 * first[key] + 0.25 * second[key], rtol=1e-5, atol=1e-7)


def test_nothing_asked_for_is_the_plain_mean(joined, tmp_path):
    mixture, experts = joined
    assert extract(mixture, tmp_path / "mean").weights == dict.fromkeys(experts, pytest.approx(1 / 3))
    name = "transformer.h.1.mlp.fc2.weight"
    mean = torch.stack([tensors_of(folder)[name] for folder in experts.values()]).mean(dim=0)
    torch.testing.assert_close(tensors_of(tmp_path / "mean")[name], mean, rtol=1e-5, atol=1e-7)


def test_a_shared_expert_counts_with_its_share(tmp_path):
    experts = {name: tuned(dense("phi"), tmp_path / name, seed) for seed, name in enumerate("ab")}
    upcycle(dense("phi"), tmp_path / "moe", experts=experts, shared_expert=True)
    extract(tmp_path / "moe", tmp_path / "back", expert="b")
    name = "model.layers.2.mlp.fc1.weight"
    expected = (tensors_of(dense("phi"))[name] + tensors_of(experts["b"])[name]) / 2
    torch.testing.assert_close(tensors_of(tmp_path / "back")[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"expert": "third"}, "no expert is called 'third'; there are base, first, second"),
        ({"expert": 3}, "no expert is called '3'"),
        ({"expert": -1}, "no expert is called '-1'"),
        ({"expert": 0, "weights": {"first": 1}}, "exclude each other"),
        ({"weights": {"first": -1, "second": 2}}, "not negative, and not all zero"),
        ({"weights": {"first": 0}}, "not negative, and not all zero"),
        ({"weights": {"first": float("nan"), "second": 1}}, "not negative, and not all zero"),
        ({"weights": {"first": float("inf")}}, "not negative, and not all zero"),
        ({"weights": {"first": 1, 1: 2}}, "expert 'first' twice"),
        ({"weights": {1: 1, "1": 2}}, "expert 'first' twice"),
        ({"max_shard_size": "much"}, "not a size such as '500MB'"),
    ],
)
def test_experts_that_cannot_be_given_are_refused_and_nothing_is_written(asked, message, joined, tmp_path):
    with pytest.raises(ConfigError, match=message):
        extract(joined[0], tmp_path / "out", **asked)
    assert not list(tmp_path.iterdir())


def test_a_dense_checkpoint_is_no_mixture_even_where_its_config_names_code_to_run(tmp_path):
    for layout in ("phi", "phi-msft"):
        with pytest.raises(CheckpointError, match="not a mixture of this library; make one with `moe-codegen upcycle"):
            extract(dense(layout), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.up_proj"), "lacks model.layers.1.mlp.experts.up_proj"),
        (lambda t: t.update({"model.layers.1.mlp.gate.weight": torch.ones(3, 32)}), r"holds \(3, 32\) for .*gate"),
        (lambda t: t.update(lora_A=torch.ones(3)), "holds lora_A, which .* has no place for, .* merge adapters first"),
    ],
)
def test_a_mixture_that_is_not_whole_is_refused(change, message, tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=2)
    with pytest.raises(CheckpointError, match=message):
        extract(copy_of(tmp_path / "moe", tmp_path / "broken", change), tmp_path / "out")


def test_a_target_that_is_not_empty_or_too_small_is_refused(tmp_path, monkeypatch):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=2)
    with pytest.raises(OutputError, match="not an empty folder"):
        extract(tmp_path / "moe", tmp_path / "moe")
    monkeypatch.setattr("moe_codegen.checkpoint.staging.free_bytes", lambda path: 1000)
    with pytest.raises(OutputError, match=r"needs 0\.00 GB .*free some"):
        extract(tmp_path / "moe", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_interrupted_it_goes_on_to_the_same_bytes_and_with_other_weights_it_refuses(joined, tmp_path):
    def interrupt(step):
        if watch.advanced[-1] > 60_000:
            raise KeyboardInterrupt

    options = {"weights": {"first": 1, "second": 1}, "max_shard_size": "20KB"}
    extract(joined[0], tmp_path / "whole", **options)
    watch = Steps(interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(joined[0], tmp_path / "out", **options, progress=watch)
    assert json.loads((tmp_path / "out.partial" / "journal.json").read_text())["done"]
    with pytest.raises(ResumeError, match="another weights"):
        extract(joined[0], tmp_path / "out", expert="first", max_shard_size="20KB")
    watch = Steps()
    extract(joined[0], tmp_path / "out", **options, progress=watch)
    ((_, total, done),) = watch.begun
    assert 0 < done < total == done + watch.advanced[0]
    assert hashes_of(tmp_path / "out") == hashes_of(tmp_path / "whole")
