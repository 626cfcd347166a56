"""`moe-codegen extract`."""

import pytest

from moe_codegen import extract, upcycle
from moe_codegen.errors import CheckpointError, ConfigError
from tests.cli.conversion import arguments_of, parameters_of, run, run_json
from tests.upcycle.checkpoints import dense, hashes_of, tuned


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    experts = {name: tuned(dense("phi"), folder / name, seed) for seed, name in enumerate(("rust", "c"))}
    upcycle(dense("phi"), folder / "moe", experts=experts)
    return folder / "moe"


def test_the_flags_are_the_functions_arguments_with_their_defaults():
    flags = parameters_of("extract")
    assert flags.pop("as_json") is False
    assert flags == arguments_of(extract)


def test_it_extracts_as_the_function_does_and_says_what(mixture, tmp_path):
    result = run("extract", mixture, tmp_path / "cli", "--weights", "rust=3,c=1", "--max-shard-size", "30KB")
    extract(mixture, tmp_path / "python", weights={"rust": 3, "c": 1}, max_shard_size="30KB")
    assert hashes_of(tmp_path / "cli") == hashes_of(tmp_path / "python")
    assert result.exit_code == 0
    assert f"Wrote {tmp_path / 'cli'}" in result.stdout
    assert "rust 0.75, c 0.25" in result.stdout


def test_json_is_all_there_is_on_standard_output(mixture, tmp_path):
    record, result = run_json("extract", mixture, tmp_path / "one", "--expert", "c")
    assert result.stdout.count("\n") == 1
    assert record["layout"] == "phi"
    assert record["weights"] == {"c": 1.0}
    assert record["files"]["model.safetensors"]["sha256"] == hashes_of(tmp_path / "one")["model.safetensors"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--expert", "go"], "no expert is called 'go'; there are rust, c"),
        (["--weights", "rust"], "'rust' is not of the form NAME=WEIGHT"),
        (["--expert", "c", "--weights", "rust=1"], "exclude each other"),
        (["--weights", "rust=nan"], "not negative, and not all zero"),
    ],
)
def test_experts_that_are_not_there_are_refused(flags, message, mixture, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run("extract", mixture, tmp_path / "out", *flags)
    assert not list(tmp_path.iterdir())


def test_a_dense_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a phi model, not a mixture of this library; make one"):
        run("extract", dense("phi"), tmp_path / "out", "--json")
