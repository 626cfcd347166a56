"""`moe-codegen evaluate`: from a model to a table, in JSON too; what is wrong is said before work starts."""

import json

import pytest

from moe_codegen.cli import app
from moe_codegen.cli.evaluate import _name_and_source
from moe_codegen.cli.evaluate import app as evaluate
from moe_codegen.errors import ResultError
from tests.cli.checkpoints import run
from tests.evaluation.programs import GOOD, WRONG, needs
from tests.evaluation.test_generate import completions_of, rows
from tests.evaluation.test_problems import write


def answers(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def two_runs(tmp_path):
    """Folders A and B of completions: B solves one problem more."""
    for name, solved in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        folder = tmp_path / name / f"mbpp-py-{name}-0.2-reworded"
        for index in range(3):
            text = GOOD["py"] if index < solved else WRONG["py"]
            completions_of(folder, "py", text, name=f"mbpp_{index}")
    return tmp_path / "a", tmp_path / "b"


@needs("py")
def test_completions_are_executed_scored_and_compared(two_runs):
    a, b = two_runs
    for folder in two_runs:
        counts = answers(run("evaluate", "execute", folder, "--json"))
        assert sum(next(iter(counts.values())).values()) == 3
    scores = answers(run("evaluate", "pass-at-k", a, "--partial", "--json"))["scores"]
    assert scores[0]["raw"]["pass@1"]["value"] == pytest.approx(1 / 3)
    assert (scores[0]["language"], scores[0]["problems"]) == ("py", 3)
    table = run("evaluate", "pass-at-k", a, "--partial").stdout
    assert "33.3%" in table
    compared = answers(run("evaluate", "compare", a, b, "--partial", "--json"))["mbpp py"]
    assert compared["difference"] == pytest.approx(1 / 3)
    assert (compared["wins"], compared["losses"], compared["test"]) == (["mbpp_1"], [], "McNemar, exact")
    assert "+33.3%" in run("evaluate", "compare", a, b, "--partial").stdout


@needs("py")
def test_a_model_is_evaluated_in_one_command(dense, tmp_path):
    write(tmp_path / "humaneval-py.jsonl", *rows("py"))
    flags = ["--problems", tmp_path, "--languages", "py", "--num-samples", "2", "--max-tokens", "8", "--device", "cpu"]
    result = run("evaluate", "run", dense, tmp_path / "out", *flags, "--limit", "1", "--json")
    record = answers(result)["models"][dense.name]
    assert sum(next(iter(record["outcomes"].values())).values()) == 2
    assert record["scores"][0]["problems"] == 1
    assert record["run"]["generation"]["tokens"] > 0


def test_completions_alone_need_no_sandbox(dense, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write(tmp_path / "humaneval-cpp.jsonl", *rows("cpp"))
    flags = ["--problems", tmp_path, "--languages", "cpp", "--num-samples", "1", "--max-tokens", "8"]
    out = tmp_path / "out [/x]"  # what looks like markup is printed as it is
    said = run("evaluate", "generate", f"small={dense}", out, *flags, "--device", "cpu").stdout
    assert f"{out}/humaneval-cpp-small-" in said


@needs("py")
def test_no_sandbox_is_said_aloud(two_runs):
    assert "WITHOUT a sandbox" in run("evaluate", "execute", two_runs[0], "--sandbox", "none").stderr
    assert "WITHOUT" not in run("evaluate", "execute", two_runs[1]).stderr


def test_results_that_are_not_there_are_an_error(two_runs):
    with pytest.raises(ResultError, match="holds no result file; run `moe-codegen evaluate execute"):
        raise run("evaluate", "pass-at-k", two_runs[0]).exception


def test_a_model_is_called_as_its_folder_is_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "model" / "a=b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model" / "a=b")
    names = [_name_and_source(text)[0] for text in (".", "..", "../a=b", "owner/name", "mine=owner/name")]
    assert names == ["a=b", "model", "a=b", "name", "mine"]


def test_the_verbs_are_these():
    assert [command.name for command in evaluate.registered_commands] == [
        "run",
        "generate",
        "execute",
        "pass-at-k",
        "compare",
        "measure",
        "codebleu",
    ]
    assert "evaluate" in [group.name for group in app.registered_groups]
