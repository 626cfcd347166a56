"""Verification finds what is wrong, and says which file, or which layer first."""

import math
import shutil

import pytest
import torch

from moe_codegen import upcycle
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.upcycle import LayerCheck, VerifyReport, verify
from tests.tiny import save_dense
from tests.upcycle.checkpoints import Steps, copy_of, dense, headers_of, tensors_of, tuned


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("mixture") / "moe"
    upcycle(dense("phi"), out, num_experts=3, max_shard_size="30KB")
    return out


def single(tmp_path):
    upcycle(dense("phi"), tmp_path / "single", num_experts=3)
    return tmp_path / "single"


def test_a_flipped_bit_is_found_and_its_file_named(mixture, tmp_path):
    broken = copy_of(mixture, tmp_path / "broken")
    name = headers_of(mixture)["model.layers.1.mlp.experts.down_proj"].file
    content = bytearray((broken / name).read_bytes())
    content[-3] ^= 1
    (broken / name).write_bytes(content)
    report = verify(dense("phi"), broken)
    assert report.damaged == [name]
    assert not report.passed
    assert report.checked_files == len(list(mixture.glob("*.safetensors")))
    assert verify(dense("phi"), broken, files=False).checked_files == 0


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:50])])
def test_a_file_that_is_missing_or_cut_off_is_named(damage, mixture, tmp_path):
    broken = copy_of(mixture, tmp_path / "broken")
    name = headers_of(mixture)["lm_head.weight"].file
    damage(broken / name)
    report = verify(dense("phi"), broken)
    assert report.damaged == [name]
    assert report.rows == []
    assert report.max_relative_error == 0
    with pytest.raises(CheckpointError, match=name):
        verify(dense("phi"), broken, files=False)


def swap_layers(tensors):
    for name in [name for name in tensors if ".layers.1.mlp.experts" in name]:
        other = name.replace(".1.", ".2.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def one_wrong_expert(tensors):
    tensors["model.layers.1.mlp.experts.up_proj"][2] = torch.randn(80, 32)


def scaled_attention(tensors):
    tensors["model.layers.2.self_attn.dense.weight"] *= 1.001


def one_wrong_logit(tensors):
    tensors["lm_head.bias"][7] += 0.01


def not_a_number(tensors):
    tensors["model.layers.0.mlp.experts.down_proj_bias"][:] = float("nan")


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (swap_layers, "layer 1"),
        (one_wrong_expert, "layer 1"),
        (scaled_attention, "layer 2"),
        (one_wrong_logit, "logits"),
        (not_a_number, "layer 0"),
    ],
)
def test_a_wrong_weight_is_found_where_it_is(change, stage, tmp_path):
    report = verify(dense("phi"), copy_of(single(tmp_path), tmp_path / "wrong", change), files=False)
    assert report.first_departure == stage
    assert not report.passed
    before = [row for row in report.rows if row.stage < stage]
    assert all(row.relative_error <= report.tolerance for row in before if row.stage != "logits")


def test_experts_of_different_checkpoints_depart_where_they_first_differ(tmp_path):
    def move_last_layer(tensors):
        tensors["model.layers.2.mlp.fc1.weight"] += 0.1

    other = copy_of(dense("phi"), tmp_path / "other", move_last_layer)
    upcycle(dense("phi"), tmp_path / "moe", experts={"a": dense("phi"), "b": other})
    report = verify(dense("phi"), tmp_path / "moe")
    assert report.first_departure == "layer 2"
    assert not report.damaged


def test_a_tolerance_and_a_text_of_ones_own(tmp_path):
    source = tuned(dense("phi"), tmp_path / "near", 1, size=1e-4)
    upcycle(source, tmp_path / "moe", num_experts=2)
    assert not verify(dense("phi"), tmp_path / "moe").passed
    assert verify(dense("phi"), tmp_path / "moe", "import os", tolerance=1e-2).passed
    assert verify(source, tmp_path / "moe", "import os", max_tokens=1).passed


@pytest.mark.parametrize("options", [{"text": ""}, {"max_tokens": 0}])
def test_no_tokens_to_compare_on_is_no_proof(options, mixture):
    with pytest.raises(ConfigError, match="no tokens to compare on"):
        verify(dense("phi"), mixture, **options)


def test_without_a_tokenizer_any_ids_will_do(mixture, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "mute")
    (source / "tokenizer.json").unlink()
    assert verify(source, mixture).passed


@pytest.mark.parametrize(
    ("layout", "overrides", "message"),
    [
        ("llama", {"num_hidden_layers": 2}, "is a moe_phi, .* a llama"),
        ("phi", {"num_hidden_layers": 2}, "num_hidden_layers 3, .* 2"),
    ],
)
def test_another_source_is_refused(layout, overrides, message, mixture, tmp_path):
    save_dense(tmp_path / "other", layout, **overrides)
    with pytest.raises(CheckpointError, match=f"{message}; give the checkpoint it was made from"):
        verify(tmp_path / "other", mixture)


@pytest.mark.parametrize("layout", ["phi", "phi-msft"])
def test_two_dense_checkpoints_are_refused(layout):
    with pytest.raises(CheckpointError, match="not a mixture of this library"):
        verify(dense("phi"), dense(layout))


def test_every_byte_is_read_again(mixture):
    steps = Steps()
    verify(dense("phi"), mixture, progress=steps)
    nbytes = sum(path.stat().st_size for path in mixture.glob("*.safetensors"))
    assert steps.begun == [("reading the mixture", nbytes, 0)]
    assert steps.advanced == [nbytes]


def test_the_models_weights_are_as_they_were_after_running_in_fp32(tmp_path):
    from moe_codegen.upcycle.mapped import computing_in_fp32, mapped_moe

    upcycle(dense("phi", torch.float16), tmp_path / "moe", num_experts=2)
    model, stored = mapped_moe(tmp_path / "moe"), tensors_of(tmp_path / "moe")
    with torch.inference_mode(), computing_in_fp32(model):
        logits = model(torch.arange(8)[None]).logits
    assert logits.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert all(torch.equal(parameter, stored[name]) for name, parameter in model.named_parameters())


def test_an_error_that_is_infinite_never_passes():
    report = VerifyReport([LayerCheck("layer 0", 0.0), LayerCheck("logits", math.inf)], tolerance=1e30)
    assert report.first_departure == "logits"
    assert report.max_relative_error == math.inf


def test_a_record_that_names_no_files_leaves_none_to_check(mixture, tmp_path):
    shutil.copytree(mixture, tmp_path / "moe")
    (tmp_path / "moe" / "upcycle.json").write_text("{}")
    report = verify(dense("phi"), tmp_path / "moe")
    assert report.passed
    assert report.checked_files == 0
