import json

import pytest
import typer
from typer.testing import CliRunner

from moe_codegen.cli import app as everything
from moe_codegen.cli.train import app
from moe_codegen.training.runfile import write_run
from tests.training.runs import LENGTH, from_scratch, make_corpus

COMMON = """model train validation validation-tokens tokens batch-size micro-batch-size learning-rate warmup schedule
    weight-decay max-grad-norm precision gradient-checkpointing log-every evaluate-every checkpoint-every
    keep-checkpoints seed trainer decay fsdp-size ep-size json"""
DENSE = "config tokenizer parts lora-rank lora-alpha"
FLAGS = {
    "dense": f"{COMMON} {DENSE} equal-flops",
    "expert": f"{COMMON} {DENSE}",
    "mix": f"{COMMON} parts router-learning-rate router-aux-loss-coef router-z-loss-coef router-logit-scale "
    "language-routing recompute-experts",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("verb", FLAGS)
def test_flags_are_frozen(verb):
    """A new flag is an interface: it is added here on purpose, with its line in the changelog."""
    command = typer.main.get_command(app).commands[verb]
    flags = {opt.removeprefix("--") for parameter in command.params for opt in parameter.opts if opt.startswith("--")}
    assert flags == set(FLAGS[verb].split())


@pytest.mark.parametrize("verb", FLAGS)
def test_help_has_every_flag_that_takes_a_value_whole_on_a_narrow_terminal(verb):
    shown = CliRunner().invoke(everything, ["train", verb, "--help"], env={"COLUMNS": "80"}, terminal_width=80).stdout
    for parameter in typer.main.get_command(app).commands[verb].params:
        if not parameter.secondary_opts:  # else a switch with its --no- form, too long for one line
            assert parameter.opts[0] in shown


@pytest.mark.parametrize("verb", FLAGS)
def test_help_names_the_defaults_of_what_neither_file_nor_flag_gives(verb):
    options = {parameter.name: parameter for parameter in typer.main.get_command(app).commands[verb].params}
    for name, default in {"learning_rate": "0.0003", "batch_size": "32", "seed": "0", "parts": "all"}.items():
        assert options[name].help.endswith(f" [default: {default}]")
        assert options[name].default is None
    assert "[default" not in options["tokens"].help + options["model"].help + options["train"].help


def test_a_run_file_and_flags_make_a_model(corpus, tmp_path):
    write_run(from_scratch(corpus, tokens=8 * LENGTH * 12), tmp_path / "run.toml")
    arguments = ["train", "dense", str(tmp_path / "run.toml"), str(tmp_path / "out"), "--tokens", str(8 * LENGTH * 4)]
    result = CliRunner().invoke(everything, [*arguments, "--trainer", "adam_beta2=0.9"])
    assert result.exit_code == 0, result.output
    assert "2,048 tokens in 4 steps" in result.output
    assert "rust" in result.output
    again = CliRunner().invoke(everything, [*arguments, "--trainer", "adam_beta2=0.9", "--json"])
    summary = json.loads(again.stdout)
    assert (summary["verb"], summary["steps"]) == ("dense", 4)
    assert summary["settings"]["trainer"] == {"adam_beta2": 0.9}
