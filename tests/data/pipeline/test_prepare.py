import json
from unittest.mock import Mock

import pytest
from datasets import load_dataset

from moe_codegen.data.pipeline.prepare import prepare, read_plan
from moe_codegen.data.report.report import write_report
from moe_codegen.errors import ConfigError, MoECodegenError, OutputError, SourceError
from tests.data.inputs import code, edited, read, row, write

PLAN = """
report = {}
[source]
path = "in"
[clean]
max_lines = 500
[dedup]
[decontaminate]
benchmarks = ["bench.jsonl"]
[sample]
files = 60
[split]
validation = 0.3
[tokenizer]
vocabulary = 400
[pack]
sequence_length = 128
"""


@pytest.fixture
def plan(tmp_path):
    rows = [row(seed, language=("python", "ruby")[seed % 2], repo=f"repo{seed}") for seed in range(150)]
    rows[3]["content"] = code(3) + "def never_twice_in_the_world(first_thing, second_thing):\n    return 1\n"
    rows += [row(200 + seed, content=edited(code(seed, 50), 0.02, seed), repo=f"r{seed}") for seed in (1, 1, 1)]
    write(tmp_path / "in", rows)
    solution = "def never_twice_in_the_world(first_thing, second_thing):\n    return 1\n"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"task_id": "B/1", "prompt": "", "canonical_solution": solution}))
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_prepare_runs_every_verb_and_reports(plan, tmp_path):
    out = tmp_path / "out"
    manifests = prepare(read_plan(plan), out)
    assert list(manifests) == [
        "1-clean",
        "2-dedup",
        "3-decontaminate",
        "4-sample",
        "5-split",
        "6-tokenizer",
        "7-pack-train",
        "7-pack-validation",
    ]
    assert manifests["2-dedup"]["tally"]["exact_duplicate"]["python"][0] == 2
    assert manifests["3-decontaminate"]["problems_found"] == {"bench.jsonl:B/1": 1}
    assert manifests["4-sample"]["rows"] == 120
    assert [stage["verb"] for stage in manifests["7-pack-train"]["history"]][-2:] == ["sample", "split"]
    assert {len(one["input_ids"]) for side in ("train", "validation") for one in read(out / f"7-pack-{side}")} == {128}

    packed = load_dataset(str(out), "7-pack", cache_dir=str(tmp_path / "cache"))
    assert {side: len(packed[side]) for side in packed} == {
        side: manifests[f"7-pack-{side}"]["rows"] for side in ("train", "validation")
    }
    texts = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))  # the last step that is text
    assert {side: len(texts[side]) for side in texts} == manifests["5-split"]["split_rows"]

    told = json.loads((out / "report" / "report.json").read_text())
    assert [stage["verb"] for stage in told["stages"]] == [
        *("clean", "dedup", "decontaminate", "sample", "split", "tokenizer"),
        *("pack", "pack"),
    ]
    text = (out / "report" / "report.md").read_text()
    for line in ("| exact duplicate | 2 |", "| MIT |", "| 1 | ", "design effect", "split rows", "padding fraction"):
        assert line in text
    pictures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert all((out / "report" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    sections = text.split("\n## ")
    assert [section.split()[0] for section in sections[1:]] == [stage["verb"] for stage in told["stages"]]
    assert all(f"-{section.split()[0]}-" in line for section in sections[1:] for line in section.split("![")[1:])
    for kind in ("clean-dropped", "clean-histograms", "dedup-clusters", "sample-samples"):
        assert any(kind in name for name in pictures)


def prepared(tmp_path, steps):
    rows = [row(seed, repo=f"r{seed}", language=("python", "java")[seed % 12 == 0]) for seed in range(60)]
    if not (tmp_path / "in").exists():  # what is written again is another source
        write(tmp_path / "in", rows)
    (tmp_path / "plan.toml").write_text(f"report = {{}}\n[source]\npath = 'in'\n{steps}")
    return prepare(read_plan(tmp_path / "plan.toml"), tmp_path / "out")


def test_validation_is_packed_as_it_is(tmp_path):
    mixture = "sequence_length = 128\ntokens = 30000\ntemperature = 5.0"
    done = prepared(tmp_path, f"[split]\nvalidation = 0.3\n[tokenizer]\nvocabulary = 400\n[pack]\n{mixture}")
    assert done["3-pack-validation"]["documents"] == done["1-split"]["split_rows"]["validation"]
    assert done["3-pack-validation"]["settings"]["fim_rate"] == 0
    assert done["3-pack-train"]["tokens"] == pytest.approx(30000, rel=0.1)


def test_a_step_taken_out_of_the_plan_is_not_told_of(tmp_path):
    prepared(tmp_path, "[clean]\n[sample]\nfiles = 5")
    prepared(tmp_path, "[clean]")
    told = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert [stage["verb"] for stage in told["stages"]] == ["clean"]


def test_a_plan_without_text_steps_has_a_card_of_what_it_packed(tmp_path):
    done = prepared(tmp_path, "[tokenizer]\nvocabulary = 400\n[pack]\nsequence_length = 128")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Code: java, python\n" in card
    assert f"{done['2-pack']['rows']} rows" in card


def test_a_report_of_data_that_is_not_ours(tmp_path):
    write(tmp_path / "in", [row(0), row(1, content=None)])
    told = write_report(tmp_path / "in", tmp_path / "out", pictures=False)
    assert told["stages"][0]["tally"]["null_content"]["python"] == [1, 0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    with pytest.raises(OutputError, match="other files than a report"):
        write_report(tmp_path / "in", tmp_path / "other")
    with pytest.raises(OutputError, match=r"a\.txt cannot be written: .*Free some space, or give a folder"):
        write_report(tmp_path / "in", tmp_path / "other" / "a.txt", pictures=False)


def test_a_card_that_cannot_be_written_is_said_to_be_so(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("moe_codegen.data.pipeline.prepare.write_card", Mock(side_effect=full))
    with pytest.raises(OutputError, match=r"out cannot be written: .*No space left"):
        prepared(tmp_path, "[dedup]")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('[clean]\n[decontaminate]\nbenchmarks = ["none.jsonl"]', r"none\.jsonl does not exist"),
        ("[clean]\n[pack]", r"\[pack\] needs a tokenizer"),
        ('[clean]\n[pack]\ntokenizer = "none"', r"none has no tokenizer\.json"),
        ('[clean]\n[tokenizer]\nbase = "./none"', r"no tokenizer can be loaded from \./none"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_before_any_work(tmp_path, steps, message):
    write(tmp_path / "in", [row(0)])
    (tmp_path / "plan.toml").write_text(f"[source]\npath = 'in'\n{steps}")
    with pytest.raises(MoECodegenError, match=message):
        prepare(read_plan(tmp_path / "plan.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_missing_is_named_where_it_was_looked_for(tmp_path):
    (tmp_path / "plan.toml").write_text("[source]\npath = 'in'\n[clean]")
    with pytest.raises(SourceError, match=f"{tmp_path / 'in'} does not exist"):
        prepare(read_plan(tmp_path / "plan.toml"), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[source]\npath = 'in'\n[clean]\nmax_linse = 3", "unknown key `max_linse`.*did you mean `max_lines`"),
        ("[source]\npath = 'in'\n[clean]\nmax_lines = 'a'", "`max_lines`.*should be of type int, found 'a'"),
        ("[source]\npath = 'in'\n[clean]\nlanguages = 'a'", "`languages`.*should be a list"),
        ("[source]\npath = 'in'\n[cleen]", r"unknown table \[cleen\]"),
        ("clean = true\n[source]\npath = 'in'", r"`clean`.*should be a table, \[clean\], found True"),
        ("source = 'in'\n[clean]", r"`source`.*should be a table, \[source\], found 'in'"),
        ("# caf\xe9", "cannot be read as TOML: 'utf-8' codec"),
        ("[clean]", "add .source. with path"),
        ("[clean", "cannot be read as TOML"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "plan.toml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.toml")
