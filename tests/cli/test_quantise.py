"""`moe-codegen quantise`, and what `inspect` says of the result."""

import json

from tests.cli.checkpoints import run


def test_a_quantised_mixture_is_written_and_described(moe, tmp_path):
    shown = run("quantise", moe, tmp_path / "int8")
    assert shown.exit_code == 0
    assert f"Wrote {tmp_path / 'int8'}" in shown.stdout
    assert "(int8, a scale for each row)" in shown.stdout
    lines = [" ".join(line.split()) for line in run("inspect", tmp_path / "int8").stdout.splitlines()]
    assert "quantised int8, a scale for each row" in lines
    assert "parameters 77,680" in lines
    assert any(line.startswith(f"source {str(moe)[:20]}") for line in lines)
    assert any(line.startswith("SHA-256 model.safetensors") for line in lines)
    record = json.loads(run("inspect", tmp_path / "int8", "--json").stdout)
    assert record["mixture"]["quantisation"] == "int8, a scale for each row"
    assert record["dtypes"]["int8"] == 61_440


def test_json_has_the_sizes_and_hashes(moe, tmp_path):
    record = json.loads(run("quantise", moe, tmp_path / "int8", "--group-size", 16, "--json").stdout)
    assert (record["bits"], record["group_size"]) == (8, 16)
    assert record["bytes"] < record["source_bytes"] / 2
    assert len(record["files"]["model.safetensors"]["sha256"]) == 64
