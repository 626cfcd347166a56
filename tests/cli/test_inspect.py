"""`moe-codegen inspect`: tables for people, JSON for programs, errors in one line."""

import json

import pytest

from moe_codegen.errors import CheckpointError
from moe_codegen_kernels import describe_cpu_path
from tests.cli.checkpoints import run, run_process


def test_a_mixture_beside_its_dense_source(dense, moe):
    shown = run("inspect", dense, moe)
    assert shown.exit_code == 0
    for words in (
        ["kind", "dense", "mixture of experts"],
        ["layout", "santacoder", "from santacoder"],
        ["layers", "3", "3, all sparse"],
        ["experts", "4, top-2"],
        ["router", "top_k, renormalised"],
        ["parameters", "30,208", "77,680"],
        ["active per token", "30,208", "46,288 (60%)"],
        ["router", "384"],
        ["dense FFN", "15.70 K"],
        ["source", str(dense)[:20]],
        ["options", "num_experts=4"],
        ["SHA-256", "model.safetensors"],
    ):
        assert any(all(word in line for word in words) for line in shown.stdout.splitlines()), words
    assert "\x1b" not in shown.stdout


def test_names_granularity_and_sparse_layers_are_shown(named):
    lines = [" ".join(line.split()) for line in run("inspect", named).stdout.splitlines()]
    for line in ("expert names python, java", "granularity 2", "layers 3, sparse: 0, 2", "dtype bfloat16"):
        assert line in lines
    assert any(line.startswith("expert sources python:") for line in lines)


def test_how_a_mixture_runs_on_this_processor_is_said(dense, moe):
    assert describe_cpu_path() in " ".join(run("inspect", moe).stdout.split())
    assert "processor" not in run("inspect", dense).stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(columns, dense, moe):
    lines = run("inspect", dense, moe, columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns


def test_json_is_one_line_for_each_checkpoint(dense, named):
    records = [json.loads(line) for line in run("inspect", dense, named, "--json").stdout.splitlines()]
    assert [record["kind"] for record in records] == ["dense", "mixture"]
    first, second = records
    assert first["mixture"] is None
    assert first["provenance"] is None
    assert first["parameters"]["total"] == first["parameters"]["active"] == 30_208
    assert second["mixture"]["expert_names"] == ["python", "java"]
    assert second["mixture"]["sparse_layers"] == [0, 2]
    assert second["bytes"] == 2 * second["parameters"]["total"]
    assert len(second["provenance"]["files"]["model.safetensors"]["sha256"]) == 64


def test_what_is_no_checkpoint_is_an_error(tmp_path):
    assert isinstance(run("inspect", tmp_path).exception, CheckpointError)


def test_a_process_says_so_in_one_line_and_exits_with_1(tmp_path):
    process = run_process("inspect", tmp_path)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert "config.json is missing" in process.stderr
    assert process.stderr.count("\n") == 1


def test_provenance_of_another_release_does_not_break_it(moe, tmp_path):
    for file in moe.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "upcycle.json").unlink()
    (tmp_path / "upcycle.json").write_text(
        json.dumps({"source": "somewhere", "files": {f"{i}.safetensors": "f" * 64 for i in range(6)}, "options": 3})
    )
    shown = run("inspect", tmp_path).stdout
    assert "somewhere" in shown
    assert "and 2 more" in shown
