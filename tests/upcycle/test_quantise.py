"""`quantise`: the same checkpoint as loading quantised and saving, written in pieces, whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_codegen import ExpertQuantisationConfig, MoEForCausalLM, extract, quantise, upcycle
from moe_codegen.errors import CheckpointError, ConfigError, OutputError, ResumeError
from moe_codegen.upcycle import verify
from tests.tiny import save_dense
from tests.upcycle.checkpoints import Steps, dense, hashes_of, tensors_of


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantise")
    save_dense(folder / "dense", "phi", torch.float16, intermediate_size=96)
    upcycle(folder / "dense", folder / "moe", num_experts=4, noise_std=0.3, layers="0,2")
    return folder / "moe"


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (8, 32), (4, None)])
def test_it_writes_what_loading_quantised_and_saving_does(moe, bits, group_size, tmp_path):
    report = quantise(moe, tmp_path / "ahead", bits=bits, group_size=group_size, max_shard_size="20KB")
    asked = ExpertQuantisationConfig(bits=bits, group_size=group_size)
    MoEForCausalLM.from_pretrained(moe, expert_quantization=asked, dtype="auto").save_pretrained(tmp_path / "saved")
    ahead, saved = tensors_of(tmp_path / "ahead"), load_file(tmp_path / "saved" / "model.safetensors")
    assert ahead.keys() == saved.keys()
    assert all(torch.equal(tensor, ahead[name]) and tensor.dtype == ahead[name].dtype for name, tensor in saved.items())
    assert len(report.files) > 2
    assert report.nbytes == sum(tensor.nbytes for tensor in saved.values())
    loaded = MoEForCausalLM.from_pretrained(tmp_path / "ahead", dtype="auto")
    assert loaded.dtype == torch.float16
    assert (tmp_path / "ahead" / "tokenizer.json").read_bytes() == (moe / "tokenizer.json").read_bytes()


def test_the_record_names_the_source_and_its_own_record(moe, tmp_path):
    quantise(moe, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "upcycle.json").read_text())
    assert record["source"] == {"given": str(moe), "commit": None}
    assert record["options"]["bits"] == 8
    assert record["source_record"] == json.loads((moe / "upcycle.json").read_text())
    assert {name: entry["sha256"] for name, entry in record["files"].items()} == {
        name: digest for name, digest in hashes_of(tmp_path / "out").items() if name.endswith(".safetensors")
    }


def test_a_killed_run_goes_on_to_the_same_bytes(moe, tmp_path):
    arguments = dict(bits=4, max_shard_size="20KB")
    quantise(moe, tmp_path / "whole", **arguments)

    writes = []

    def kill(step):
        writes.append(step)
        if len(writes) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(moe, tmp_path / "out", **arguments, progress=Steps(kill))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ResumeError, match="another bits"):
        quantise(moe, tmp_path / "out", bits=8, max_shard_size="20KB")
    steps = Steps()
    quantise(moe, tmp_path / "out", **arguments, progress=steps)
    [(_, total, done)] = steps.begun
    assert 0 < done < total
    assert hashes_of(tmp_path / "out").items() >= {
        (name, digest) for name, digest in hashes_of(tmp_path / "whole").items() if name.endswith(".safetensors")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(bits=5), "bits=5 is not supported for experts"),
        (dict(bits=4, group_size=64), "group_size=64 does not divide rows of 32"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(moe, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        quantise(moe, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_rows_that_no_group_of_four_bits_fits_are_refused_with_what_does(tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=2)  # whose second matrices have rows of 80
    with pytest.raises(ConfigError, match=r"rows of 80 are no multiple of 32, .*; use 8 bits"):
        quantise(tmp_path / "moe", tmp_path / "out", bits=4)


def test_a_dense_source_a_taken_target_and_weights_that_are_no_numbers_are_refused(moe, tmp_path):
    with pytest.raises(CheckpointError, match="not a mixture"):
        quantise(moe.parent / "dense", tmp_path / "out")
    with pytest.raises(OutputError, match="not an empty folder"):
        quantise(moe, moe.parent / "dense")
    for file in moe.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.2.mlp.experts.up_proj"][3, 5, 7] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts\.up_proj: a weight is NaN"):
        quantise(tmp_path, tmp_path / "out")


def test_what_needs_full_precision_says_what_to_give(moe, tmp_path):
    quantise(moe, tmp_path / "int8")
    for act in (
        lambda: quantise(tmp_path / "int8", tmp_path / "again"),
        lambda: extract(tmp_path / "int8", tmp_path / "dense"),
        lambda: verify(moe.parent / "dense", tmp_path / "int8", files=False),
    ):
        with pytest.raises(CheckpointError, match=r"are quantised \(int8, a scale for each row\); give the mixture"):
            act()


def test_verify_checks_the_files_of_a_quantised_mixture(moe, tmp_path):
    quantise(moe, tmp_path / "int8")
    report = verify(moe.parent / "dense", tmp_path / "int8")
    assert report.passed
    assert (report.checked_files, report.rows) == (1, [])
    assert "int8" in report.not_run
    with (tmp_path / "int8" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert verify(moe.parent / "dense", tmp_path / "int8").damaged == ["model.safetensors"]
