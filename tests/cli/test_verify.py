"""`moe-codegen verify`."""

import pytest
import torch

from moe_codegen import upcycle
from moe_codegen.upcycle import verify
from tests.cli.conversion import arguments_of, parameters_of, run, run_json
from tests.upcycle.checkpoints import copy_of, dense


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("mixture") / "moe"
    upcycle(dense("phi"), out, num_experts=3)
    return out


def test_the_flags_are_the_functions_arguments_with_their_defaults():
    flags = parameters_of("verify")
    assert flags.pop("as_json") is False
    assert flags == arguments_of(verify)


def test_equal_is_said_with_every_stage_and_status_0(mixture):
    result = run("verify", dense("phi"), mixture)
    assert result.exit_code == 0
    for text in ("layer 0", "layer 2", "logits", "Equal", "SHA-256 they were written with: 1"):
        assert text in result.stdout


def test_a_departure_is_named_with_status_1(mixture, tmp_path):
    def change(tensors):
        tensors["model.layers.1.mlp.experts.down_proj"][:] = torch.randn(32, 80)

    wrong = copy_of(mixture, tmp_path / "wrong", change)
    result = run("verify", dense("phi"), wrong, "--no-files")
    assert result.exit_code == 1
    assert "Departs first at layer 1 (tolerance 5e-06)" in result.stdout
    record, result = run_json("verify", dense("phi"), wrong)
    assert result.exit_code == 1
    assert record["damaged"] == ["model.safetensors"]
    assert record["passed"] is False
    result = run("verify", dense("phi"), wrong)
    assert "damaged: model.safetensors is not what was written; convert or fetch it again" in result.stdout


def test_json_is_all_there_is_on_standard_output(mixture, tmp_path):
    (tmp_path / "text").write_text("import os")
    flags = ("--text", tmp_path / "text", "--tolerance", "1e-3", "--max-tokens", 5)
    record, result = run_json("verify", dense("phi"), mixture, *flags)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert record["passed"] is True
    assert record["first_departure"] is None
    assert record["tolerance"] == 1e-3
    assert [row["stage"] for row in record["rows"]] == ["layer 0", "layer 1", "layer 2", "logits"]


def test_an_error_that_is_no_number_is_null_in_json(mixture, tmp_path):
    def change(tensors):
        tensors["model.layers.0.mlp.experts.down_proj"][:] = float("nan")

    record, _ = run_json("verify", dense("phi"), copy_of(mixture, tmp_path / "nan", change), "--no-files")
    assert record["rows"][0]["relative_error"] is None
    assert record["first_departure"] == "layer 0"


def test_a_text_that_is_not_utf_8_will_do(mixture, tmp_path):
    (tmp_path / "latin").write_bytes("def caf\xe9(): pass".encode("latin-1"))
    assert run("verify", dense("phi"), mixture, "--text", tmp_path / "latin").exit_code == 0


def test_a_text_that_is_not_there_is_a_usage_error(mixture):
    assert run("verify", dense("phi"), mixture, "--text", "/no/such/text").exit_code == 2
