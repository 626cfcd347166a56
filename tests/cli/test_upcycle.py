"""`moe-codegen upcycle`: the Python function's arguments as flags, plans and results for people and for programs."""

import json
from importlib import import_module

import pytest

from moe_codegen import upcycle
from moe_codegen.errors import ConfigError, MoECodegenError
from tests.cli.conversion import arguments_of, parameters_of, run, run_apart, run_json
from tests.upcycle.checkpoints import config_of, dense, hashes_of, tuned

MODULE = import_module("moe_codegen.cli.upcycle")  # whose name in its package is the verb's


def test_the_flags_are_the_functions_arguments_with_their_defaults():
    flags = parameters_of("upcycle")
    assert flags.pop("as_json") is False
    assert {name: value or None for name, value in flags.items()} == {
        name: value or None for name, value in arguments_of(upcycle).items()
    }


def test_every_flag_reaches_the_function(monkeypatch, tmp_path):
    given = {}

    def record(source, out, **options):
        given.update(options, source=source, out=out)
        raise ConfigError("far enough")

    monkeypatch.setattr(MODULE, "convert", record)
    (tmp_path / "texts.jsonl").write_text('{"expert": "a", "text": "x"}\n')
    arguments = (
        "SRC OUT --experts a=1 --experts b=2=3 --num-experts 4 --top-k 3 --layers 0,2 --granularity 2 --shared-expert "
        "--no-renormalise --shared a=1,b=0.5 --noise-std 0.1 --drop-ratio 0.2 --router ridge --router-std 0.3 "
        f"--router-data {tmp_path / 'texts.jsonl'} --dtype float16 --max-shard-size 1GB --seed 5 --workers 2 --dry-run"
    )
    with pytest.raises(ConfigError, match="far enough"):
        run("upcycle", *arguments.split())
    assert str(given.pop("out")) == "OUT"
    assert callable(given.pop("progress"))
    assert given == {
        "source": "SRC",
        "experts": {"a": "1", "b": "2=3"},
        "num_experts": 4,
        "top_k": 3,
        "layers": "0,2",
        "granularity": 2,
        "shared_expert": True,
        "renormalise": False,
        "shared": {"a": 1.0, "b": 0.5},
        "noise_std": 0.1,
        "drop_ratio": 0.2,
        "router": "ridge",
        "router_std": 0.3,
        "router_data": {"a": ["x"]},
        "dtype": "float16",
        "max_shard_size": "1GB",
        "seed": 5,
        "workers": 2,
        "dry_run": True,
    }


def test_it_converts_as_the_function_does_and_says_how_to_check(tmp_path):
    result = run("upcycle", dense("phi"), tmp_path / "cli moe", "--num-experts", 3)
    upcycle(dense("phi"), tmp_path / "python", num_experts=3)
    assert hashes_of(tmp_path / "cli moe") == hashes_of(tmp_path / "python")
    assert result.exit_code == 0
    assert f"moe-codegen verify {dense('phi')} '{tmp_path / 'cli moe'}'\n" in result.stdout  # to be pasted: one line


def test_a_dry_run_prints_a_table_and_writes_nothing(tmp_path):
    result = run("upcycle", dense("santacoder"), tmp_path / "moe", "--dry-run", "--layers", "0,1")
    assert result.exit_code == 0
    for text in ("*.mlp.experts.up_proj", "8 copies", "8 x 80 x 32", "router normal", "Nothing was written"):
        assert text in result.stdout
    assert not list(tmp_path.iterdir())


def test_json_is_all_there_is_on_standard_output(tmp_path):
    record, result = run_json("upcycle", dense("phi"), tmp_path / "moe", "--num-experts", 2, "--no-renormalise")
    assert result.stdout.count("\n") == 1
    assert record["files"] == json.loads((tmp_path / "moe" / "upcycle.json").read_text())["files"]
    assert record["bytes"] == sum(tensor["bytes"] for tensor in record["tensors"])
    assert record["dry_run"] is False
    assert "must be trained before use" in record["warnings"][0]
    dry, _ = run_json("upcycle", dense("phi"), tmp_path / "dry", "--num-experts", 2, "--no-renormalise", "--dry-run")
    assert dry["dry_run"] is True
    assert dry["tensors"] == record["tensors"]
    assert not (tmp_path / "dry").exists()


def test_experts_are_named_in_order(tmp_path):
    for seed, name in enumerate("ba"):
        tuned(dense("phi"), tmp_path / name, seed)
    run(
        "upcycle",
        dense("phi"),
        tmp_path / "moe",
        "--experts",
        f"b={tmp_path / 'b'}",
        "--experts",
        f"a={tmp_path / 'a'}",
    )
    assert config_of(tmp_path / "moe")["expert_names"] == ["b", "a"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experts", "path/only"], "'path/only' is not of the form NAME=PATH"),
        (["--experts", "a=1", "--experts", "a=2"], "'a' is given twice: 1 and 2"),
        (["--shared", "a=1,b"], "'b' is not of the form NAME=WEIGHT$"),
        (["--shared", "a=1,a=2"], "'a' is given twice"),
        (["--shared", "a=much"], "'a=much': could not convert .*give NAME=WEIGHT,NAME=WEIGHT with numbers"),
        (["--router", "ridge", "--router-data", "nowhere"], "nowhere does not exist; give a JSONL file"),
        (["--top-k", "9"], "top_k=9 exceeds num_experts=8; lower top_k or add experts"),
    ],
)
def test_flags_that_cannot_hold_are_refused(flags, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run("upcycle", dense("phi"), tmp_path / "moe", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--router", "gate"], ["--top-k", "two"], ["--nonsense"]])
def test_flags_that_do_not_exist_are_a_usage_error(flags, tmp_path):
    assert run("upcycle", dense("phi"), tmp_path / "moe", *flags).exit_code == 2


def test_from_a_shell_an_error_is_one_message_on_standard_error_with_status_1(tmp_path):
    out = tmp_path / "[red]out[/x]"  # what looks like markup is printed as it is
    out.mkdir(parents=True)
    (out / "a").touch()
    result = run_apart("upcycle", dense("phi"), out, "--json")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"error: {out} exists and is not an empty folder; give another, or remove it first\n"


def test_interrupted_it_ends_with_the_status_of_an_interrupt(monkeypatch, tmp_path):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "convert", interrupt)
    assert run("upcycle", dense("phi"), tmp_path / "moe").exit_code == 130


def test_every_error_of_ours_is_one_that_the_command_line_catches():
    from moe_codegen import errors

    ours = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, MoECodegenError) for error in ours)
