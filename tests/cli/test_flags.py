"""The command line is an interface: a flag that is added, renamed or dropped shows here first."""

import pytest
import typer
from typer.testing import CliRunner

from moe_codegen.cli import app

FLAGS = {
    "inspect": ["paths", "--json"],
    "quantise": ["source", "out", "--bits", "--group-size", "--max-shard-size", "--json"],
    "export": ["source", "out", "--max-shard-size", "--json"],
    "generate": [
        "path",
        "prompt",
        "--prefix",
        "--suffix",
        "--max-new-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--language",
        "--stop",
        "--dtype",
        "--device",
        "--show-routing",
        "--routing-layer",
        "--json",
    ],
    "tune": ["--model", "--hidden", "--num-experts", "--top-k", "--gated", "--dtype", "--tokens", "--minutes"],
    "report": ["runs", "--out"],
    "demo": ["--out", "--seed", "--steps", "--minutes"],
}


@pytest.mark.parametrize("verb", FLAGS)
def test_the_verbs_flags_are_these(verb):
    command = typer.main.get_command(app).commands[verb]
    assert [option for parameter in command.params for option in parameter.opts] == FLAGS[verb]


@pytest.mark.parametrize("verb", FLAGS)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(verb, columns):
    result = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": str(columns)}, terminal_width=columns)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= columns
    for flag in FLAGS[verb]:
        if flag.startswith("--"):
            assert flag in result.stdout


def test_the_version_names_what_a_report_of_a_fault_needs():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert [word for word in result.stdout.split() if word[0].isalpha()] == ["moe-codegen", "torch", "transformers"]
