"""What cannot be converted is refused by the right exception, which says what to do; nothing is written."""

import json

import pytest
import torch

from moe_codegen import upcycle
from moe_codegen.errors import CheckpointError, ConfigError, MismatchError, OutputError
from tests.tiny import save_dense
from tests.upcycle.checkpoints import SEED_OF_ANOTHER_MODEL, copy_of, dense, tuned


@pytest.fixture
def refused(tmp_path):
    """refused(error, message, source, **options): the call raises and leaves no trace."""

    def check(error, message, source, **options):
        with pytest.raises(error, match=message) as caught:
            upcycle(source, tmp_path / "result" / "moe", **options)
        assert type(caught.value) is error
        assert not (tmp_path / "result").exists()

    return check


def poison(value, name="model.layers.1.mlp.fc1.weight"):
    def change(tensors):
        tensors[name].view(-1)[5:7] = value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value, refused, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "source", poison(value))
    message = r"model\.layers\.1\.mlp\.fc1\.weight holds 2 values that are NaN or infinite.*use an earlier one"
    refused(CheckpointError, message, source)
    refused(CheckpointError, message, dense("phi"), experts={"good": dense("phi"), "bad": source})


def test_weights_that_are_infinite_in_the_dtype_asked_for(refused, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "source", poison(-7e4))
    message = r"fc1\.weight holds values between -70000 and .* infinite in float16; convert to bfloat16"
    refused(ConfigError, message, source, dtype="float16")
    upcycle(source, tmp_path / "moe", dtype="bfloat16")


def test_a_quantised_source(refused, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "source", quantization_config={"quant_method": "gptq"})
    refused(CheckpointError, r"is quantised \(gptq\).*dequantise and save it first", source)


def test_a_truncated_shard(refused, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "source")
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])
    refused(CheckpointError, "truncated or damaged .*fetch it again", source)


def test_a_pickled_source(refused, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(CheckpointError, "pytorch_model.bin, a pickle.*save_pretrained", source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.2.mlp.fc2.bias"), r"lacks model\.layers\.2\.mlp\.fc2\.bias"),
        (lambda t: t.update({"model.layers.2.lora_A.weight": torch.ones(2)}), "holds model.layers.2.lora_A.weight.*"),
    ],
)
def test_a_missing_or_an_unknown_key(change, message, refused, tmp_path):
    refused(CheckpointError, message, copy_of(dense("phi"), tmp_path / "source", change))


def test_a_tied_weight_whose_second_copy_differs(refused, tmp_path):
    def stale(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1

    source = copy_of(dense("gpt_bigcode"), tmp_path / "source", stale)
    refused(CheckpointError, "lm_head.weight differs from transformer.wte.weight.*remove the stale one", source)


def test_a_mixture_is_no_source(refused, tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=2)
    refused(CheckpointError, "already a mixture of experts .*give its dense source", tmp_path / "moe")


def test_an_expert_of_another_base(refused, tmp_path):
    save_dense(tmp_path / "other", "phi", seed=SEED_OF_ANOTHER_MODEL)
    message = r"expert 'b' \(.*other\) does not descend from the base .*cosine of -?0\.\d+, below 0\.5; join only"
    refused(MismatchError, message, dense("phi"), experts={"a": dense("phi"), "b": tmp_path / "other"})


@pytest.mark.parametrize(
    ("layout", "overrides", "message"),
    [
        ("phi", {"vocab_size": 64}, "vocabulary of 64 tokens, the base one of 128; .*without adding tokens"),
        ("phi", {"num_hidden_layers": 2}, "num_hidden_layers is 2, the base's is 3"),
        ("phi", {"partial_rotary_factor": 0.25}, "not of the base's shape: rope_parameters"),
        ("llama", {}, r"expert 'b' .* is a llama, the base a phi; join only"),
    ],
)
def test_an_expert_of_another_shape(layout, overrides, message, refused, tmp_path):
    save_dense(tmp_path / "other", layout, **overrides)
    refused(MismatchError, message, dense("phi"), experts={"a": dense("phi"), "b": tmp_path / "other"})


def retokenised(to, change):
    folder = tuned(dense("phi"), to, 3)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["added_tokens"].append({"id": 127, "content": "<new>", "special": True}),
        lambda t: t["model"]["merges"].pop(),
        lambda t: t["model"]["vocab"].update({"{": t["model"]["vocab"]["}"], "}": t["model"]["vocab"]["{"]}),
    ],
)
def test_an_expert_with_another_tokenizer(change, refused, tmp_path):
    other = retokenised(tmp_path / "other", change)
    message = r"tokenizer\.json of expert 'b' .*makes other tokens"
    refused(MismatchError, message, dense("phi"), experts={"a": dense("phi"), "b": other})


def test_a_tokenizer_saved_again_by_training_is_the_same_one(tmp_path):
    def save_again(tokenizer):
        tokenizer["padding"] = {"strategy": "BatchLongest"}
        tokenizer["truncation"] = {"max_length": 512}
        tokenizer["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]

    other = retokenised(tmp_path / "other", save_again)
    upcycle(dense("phi"), tmp_path / "moe", experts={"a": dense("phi"), "b": other}, dry_run=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 2, "top_k": 3}, "top_k=3 exceeds num_experts=2; lower top_k or add experts"),
        ({"top_k": 1}, r"top_k=1 with renormalise=True .*set renormalise=False \(Switch routing\) or top_k=2"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"num_experts": 0}, "exceeds num_experts=0"),
        ({"granularity": 0}, "granularity=0 must be at least 1"),
        ({"num_experts": "8"}, "num_experts should be of type int, found '8'"),
        ({"top_k": 2.0}, r"top_k should be of type int, found 2\.0"),
        ({"granularity": "2"}, "granularity='2' must be at least 1 and whole"),
        ({"layers": ["0"]}, "layers should be of type int, found '0'"),
        ({"layers": 0}, r"layers should be of type str \| list\[int\], found 0"),
        ({"renormalise": "no"}, "renormalise should be of type bool, found 'no'"),
        ({"noise_std": "0.1"}, "noise_std should be of type float, found '0.1'"),
        ({"max_shard_size": 10**9}, "max_shard_size=1000000000 is not a size"),
        ({"seed": None}, "seed should be of type int, found None"),
        ({"workers": "2"}, "workers='2' must be at least 1 and whole"),
        ({"num_experts": 8, "top_k": 3, "granularity": 2}, "granularity=2 must divide num_experts=8 and top_k=3"),
        ({"num_experts": 7, "top_k": 2, "granularity": 2}, "granularity=2 must divide num_experts=7"),
        ({"num_experts": 9, "top_k": 3, "granularity": 3}, "granularity=3 does not divide the FFN's 80 hidden units"),
        ({"layers": "0,3"}, r"layers=\[0, 3\] must lie between 0 and 2"),
        ({"layers": [-1]}, r"layers=\[-1\] must lie between 0 and 2"),
        ({"layers": []}, "layers names none"),
        ({"layers": "2-1"}, "layers names none"),
        ({"layers": "first"}, "layers='first' is neither 'all' nor a list such as '0,2,8-11'"),
        ({"layers": ""}, "layers='' is neither"),
        ({"dtype": "int8"}, "dtype='int8' is not one of float32, float16, bfloat16"),
        ({"max_shard_size": "2"}, "max_shard_size='2' is not a size such as '500MB' or '4GB'"),
        ({"max_shard_size": "0GB"}, "is not a size"),
        ({"max_shard_size": "1.2.3GB"}, "is not a size"),
        ({"noise_std": -0.1}, "noise_std=-0.1 must be 0 or a positive number"),
        ({"noise_std": float("nan")}, "noise_std=nan must be"),
        ({"drop_ratio": 1.5}, "drop_ratio=1.5 must lie between 0 and 1"),
        ({"drop_ratio": float("nan")}, "drop_ratio=nan must lie"),
        ({"router_std": 0.0}, "router_std=0.0 must be positive"),
        ({"router_std": float("nan")}, "router_std=nan must be positive"),
        ({"shared": "mean"}, "shared='mean' must be 'base', 'average' or a weight for each expert"),
        ({"shared": "average"}, "shared='average' blends the experts' checkpoints, and none are given"),
        ({"experts": []}, "experts is empty; leave it out"),
        ({"experts": {}}, "experts is empty; leave it out"),
        ({"experts": "/some/path"}, "experts='/some/path' is one path; give a list of paths, or name -> path"),
    ],
)
def test_settings_that_cannot_hold(options, message, refused):
    refused(ConfigError, message, dense("phi"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": {"a": 1, "c": 1}}, "must give non-negative weights to base, a, b"),
        ({"shared": {"a": -1, "b": 2}}, "must give non-negative weights"),
        ({"shared": {"a": 0}}, "not all zero"),
        ({"shared": {"a": float("nan")}}, "must give non-negative weights"),
        ({"num_experts": 3}, "num_experts=3, but 2 checkpoints split in 1 make 2; leave num_experts out"),
    ],
)
def test_settings_that_do_not_fit_the_checkpoints(options, message, refused, tmp_path):
    experts = {name: tuned(dense("phi"), tmp_path / name, seed) for seed, name in enumerate("ab")}
    refused(ConfigError, message, dense("phi"), experts=experts, **options)


def test_names_that_clash(refused, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    first, second = (tuned(dense("phi"), tmp_path / up / "same", seed) for seed, up in enumerate("xy"))
    refused(ConfigError, "two experts are named alike .*NAME=PATH", dense("phi"), experts=[first, second])
    message = "the name 'base' stands for .*; call the expert .*same something else"
    refused(ConfigError, message, dense("phi"), experts={"base": first, "other": second})


def test_targets_that_cannot_be(tmp_path):
    for make in (lambda path: path.touch(), lambda path: (path / "sub").mkdir(parents=True)):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        make(out)
        with pytest.raises(OutputError, match="exists and is not an empty folder; give another"):
            upcycle(dense("phi"), out)
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        upcycle(dense("phi"), dense("phi"))


def test_a_disk_that_is_too_small(refused, monkeypatch):
    monkeypatch.setattr("moe_codegen.checkpoint.staging.free_bytes", lambda path: 5000)
    refused(OutputError, r"needs 0\.00 GB and its disk has 0\.00 GB free; .*another disk", dense("phi"))
