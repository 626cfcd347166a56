import io
import json
import sys

import pytest
from typer.testing import CliRunner

from moe_codegen.cli import main
from moe_codegen.cli.data import app
from tests.data.inputs import row, write

SOURCE = "columns config data-dir language layout limit revision split"
COMMON = "dry-run help json num-proc quiet"
FLAGS = {
    "inspect": "",
    "clean": "also-licenses drop-configuration drop-generated languages max-avg-line-length max-comment-fraction "
    "max-encoded-fraction max-encoded-run max-line-length max-lines max-size min-alphanum-fraction "
    "min-comment-fraction permissive-only",
    "dedup": "bands min-words near permutations rows similarity",
    "decontaminate": "benchmarks",
    "sample": "confidence files languages precision rho seed variation",
    "split": "seed similarity validation",
    "tokenizer": "base max-bytes sentinels vocabulary",
    "pack": "fim-rate seed sequence-length spm-rate temperature tokenizer tokens weights",
}


def flags(verb):
    """The long flags of a verb, negations left out."""
    import typer.main

    command = typer.main.get_command(app).commands[verb]
    return {opt.removeprefix("--") for parameter in command.params for opt in parameter.opts if opt.startswith("--")}


@pytest.mark.parametrize("verb", FLAGS)
def test_flags_are_frozen(verb):
    """A new flag is an interface: it is added here on purpose, with its line in the changelog."""
    assert flags(verb) | {"help"} == set(f"{FLAGS[verb]} {SOURCE} {COMMON}".split())


@pytest.mark.parametrize("verb", [*sorted(set(FLAGS) - {"decontaminate", "pack"}), "report"])
def test_a_dry_run_writes_nothing(tmp_path, verb):
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    result = CliRunner().invoke(app, [verb, str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "nothing is written" in result.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_report_names_the_stages_and_refuses_what_the_run_would(tmp_path):
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    clean = ["clean", str(tmp_path / "in"), str(tmp_path / "out"), "--quiet"]
    assert CliRunner().invoke(app, clean).exit_code == 0
    told = CliRunner().invoke(app, ["report", str(tmp_path / "out"), str(tmp_path / "report"), "--dry-run"])
    assert "clean of in" in told.output
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "out"), str(tmp_path / "in"), "--dry-run"])
    assert "other files than a report" in str(refused.exception)


def test_a_dry_run_of_publish_says_what_it_would_upload_and_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    command = ["clean", str(tmp_path / "in"), str(tmp_path / "out"), "--quiet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    told = CliRunner().invoke(app, ["publish", str(tmp_path / "out"), "me/code", "--dry-run", "--json"])
    plan = json.loads(told.output)
    assert (plan["private"], plan["files"], plan["url"]) == (True, ["README.md", "part-00000.parquet"], None)
    assert plan["nbytes"] == sum((tmp_path / "out" / name).stat().st_size for name in plan["files"])
    for arguments, message in (
        ([str(tmp_path / "in"), "me/code"], "has no README.md; give the OUT of a verb"),
        ([str(tmp_path / "out"), "code"], "should be of the form owner/name"),
        ([str(tmp_path / "out"), "me/co de"], "is no name of a dataset"),
    ):
        assert message in str(CliRunner().invoke(app, ["publish", *arguments, "--dry-run"]).exception)


def test_what_looks_like_markup_in_the_name_of_a_folder_is_none(tmp_path):
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    out, report = tmp_path / "out [bold] [/x]", tmp_path / "report [/x]"
    (tmp_path / "plan.toml").write_text('[source]\npath = "in"\n[clean]\n')
    for arguments, line in (
        (["clean", tmp_path / "in", out, "--dry-run"], f"-> {out} (dry run"),
        (["clean", tmp_path / "in", out, "--quiet"], f"clean -> {out}"),
        (["report", out, report, "--no-pictures"], f"report written to {report}"),
        (["publish", out, "me/code", "--dry-run"], f"publish {out} -> me/code (dry run"),
        (["prepare", tmp_path / "plan.toml", out, "--dry-run"], f"clean -> {out}"),
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert line in result.output, result.exception


def test_a_terminal_of_ascii_gets_escapes_and_json_stays_json(tmp_path, monkeypatch):
    source = write(tmp_path / "größe", [row(seed) for seed in range(20)])
    written = []
    for flags in (["--dry-run"], ["--json", "--quiet"]):
        monkeypatch.setattr(sys, "argv", ["moe-codegen", "data", "clean", str(source), str(tmp_path / "out"), *flags])
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        with pytest.raises(SystemExit, match="0"):
            main()
        sys.stdout.flush()
        written.append(sys.stdout.buffer.getvalue().decode("ascii"))
    assert r"gr\xf6\xdfe ->" in written[0]
    assert json.loads(written[1])["source"] == "größe"


def test_a_hub_that_is_not_reached_is_said_to_be_so(tmp_path, monkeypatch):
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    command = ["clean", str(tmp_path / "in"), str(tmp_path / "out"), "--quiet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: 1 / 0)
    refused = CliRunner().invoke(app, ["publish", str(tmp_path / "out"), "me/code"])
    assert "the Hub does not take me/code: division by zero; check the network" in str(refused.exception)


@pytest.mark.parametrize(
    ("verb", "message"),
    [("decontaminate", "no benchmark to look for"), ("pack", "no tokenizer named; give the folder of one")],
)
def test_a_dry_run_refuses_what_the_run_would(tmp_path, verb, message):
    write(tmp_path / "in", [row(0)])
    result = CliRunner().invoke(app, [verb, str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run"])
    assert message in str(result.exception)


def test_a_verb_writes_and_prints_its_manifest(tmp_path):
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    arguments = ["clean", str(tmp_path / "in"), str(tmp_path / "out"), "--quiet", "--json", "--max-line-length", "60"]
    result = CliRunner().invoke(app, arguments)
    manifest = json.loads(result.output)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["max_line_length"] == 60
    nbytes = manifest["tally"]["kept"]["python"][1]
    shown = CliRunner().invoke(app, ["dedup", str(tmp_path / "out"), str(tmp_path / "dedup"), "--num-proc", "2"])
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.output.splitlines()]
    assert ["kept", "20", f"{nbytes / 1e6:.2f}"] in lines
    assert ["python", "20", f"{nbytes / 1e6:.2f}", "0", "0.00"] in lines


def test_prepare_and_report(tmp_path):
    write(tmp_path / "in", [row(seed) for seed in range(20)])
    (tmp_path / "plan.toml").write_text('[source]\npath = "in"\n[clean]\n[dedup]\n')
    arguments = ["prepare", str(tmp_path / "plan.toml"), str(tmp_path / "out"), "--quiet"]
    told = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert told.exit_code == 0
    for line in (f"prepare {tmp_path / 'in'} -> {tmp_path / 'out'}", f"dedup -> {tmp_path / 'out' / '2-dedup'}"):
        assert line in told.output
    lines = [line.split() for line in told.output.splitlines()]
    assert ["drop_generated", "yes"] in lines
    assert ["languages", "none"] in lines
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert [each["rows"] for each in json.loads(again.output).values()] == [20, 20]
    told = ["report", str(tmp_path / "out"), str(tmp_path / "report"), "--no-pictures", "--json"]
    result = CliRunner().invoke(app, told)
    assert [stage["verb"] for stage in json.loads(result.output)["stages"]] == ["clean", "dedup"]
    assert (tmp_path / "report" / "report.md").exists()
