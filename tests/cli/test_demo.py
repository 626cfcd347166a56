"""`moe-codegen demo`: every step runs, shows its command, and a second run keeps the trained model."""

import subprocess

import pytest

from moe_codegen.cli.demo import quoted
from moe_codegen.demo import gather_sources
from moe_codegen.errors import ConfigError, OutputError
from tests.cli.checkpoints import run


@pytest.fixture(autouse=True)
def little_code(monkeypatch):
    budgets = {"python": 30_000, "cpp": 10_000}
    monkeypatch.setattr("moe_codegen.cli.demo.gather_sources", lambda seed: gather_sources(budgets=budgets, seed=seed))


def test_the_whole_road_and_again(tmp_path):
    out = tmp_path / "out"
    first = run("demo", "--out", out, "--steps", 2, columns=100)
    assert first.exit_code == 0, first.exception
    for step in range(1, 9):
        assert f"\n{step}  " in first.stdout
    for command in ("upcycle", "verify", "inspect", "generate"):
        assert f"$ moe-codegen {command} {out}" in first.stdout
    assert "Equal within" in first.stdout
    assert "5 of 5 other prompts" in first.stdout
    assert "mixture of experts" in first.stdout
    assert "first expert in layer 2" in first.stderr
    assert "\x1b" not in first.stdout + first.stderr

    weights = (out / "dense" / "model.safetensors").stat().st_mtime_ns
    second = run("demo", "--out", out, "--steps", 2)
    assert second.exit_code == 0
    assert "kept" in second.stdout
    assert (out / "dense" / "model.safetensors").stat().st_mtime_ns == weights


def test_a_folder_of_someone_elses_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    assert isinstance(run("demo", "--out", tmp_path, "--steps", 1).exception, OutputError)


@pytest.mark.parametrize("arguments", [("--steps", 1, "--minutes", 1), ("--steps", 0), ("--minutes", -1)])
def test_training_has_one_length(arguments, tmp_path):
    assert isinstance(run("demo", "--out", tmp_path / "out", *arguments).exception, ConfigError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["plain", "two words", "it's\n  a \\ line\n", "$HOME `x`"])
def test_a_command_can_be_pasted_into_a_shell(argument):
    command = f"printf %s {quoted(argument)}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout == argument
