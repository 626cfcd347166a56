"""CodeBLEU runs beside the syntax check on one set of versions, and is high for what is wrong."""

import json

import pytest

from moe_codegen.errors import ConfigError, ResultError
from moe_codegen.evaluation.codebleu import LANGUAGES, codebleu, folder_codebleu, read_references
from moe_codegen.evaluation.multipl_e import Completions, write_completions
from moe_codegen.evaluation.syntax import parses
from tests.cli.checkpoints import run
from tests.evaluation.test_generate import completions_of

pytest.importorskip("codebleu")
RIGHT = {
    "python": "def f(items):\n    total = 0\n    for item in items:\n        total = total + item\n    return total\n",
    "java": "class A { int f(int[] x) { int total = 0; for (int item : x) total = total + item; return total; } }",
    "javascript": "function f(items) { let total = 0; for (const item of items) total = total + item; return total; }",
    "cpp": "int f(int* x, int n) { int total = 0; for (int i = 0; i < n; ++i) total = total + x[i]; return total; }",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_is_one_for_the_same_and_stays_high_for_a_wrong_program(language):
    right, wrong = RIGHT[language], RIGHT[language].replace("total +", "total -")
    assert codebleu(right, right, language) == pytest.approx(1)
    assert 0.7 < codebleu(right, wrong, language) < 1
    assert codebleu(right, "x", language) < 0.5
    assert parses(wrong, language)


def test_a_reference_without_data_flow_is_compared_without_a_word(caplog):
    assert codebleu("return 1\n", "return 1\n", "python") > 0.5
    assert caplog.records == []


def test_a_folder_is_the_mean_over_its_problems(tmp_path):
    def write(name, *texts):
        fixed = dict(prompt="", tests="", stop_tokens=(), temperature=0.2, top_p=0.95, max_tokens=64)
        write_completions(tmp_path, Completions(name=name, language="py", completions=texts, **fixed))

    write("a", RIGHT["python"], RIGHT["python"])
    write("b", RIGHT["python"], "x")
    references = dict.fromkeys("ab", RIGHT["python"])
    half = (1 + codebleu(RIGHT["python"], "x", "py")) / 2
    mean, left_out = folder_codebleu(tmp_path, references)
    assert (mean.value, left_out) == (pytest.approx((1 + half) / 2), 0)
    mean, left_out = folder_codebleu(tmp_path, {"b": RIGHT["python"], "other": "x"})
    assert (mean.value, mean.clusters, left_out) == (pytest.approx(half), 1, 1)
    assert folder_codebleu(tmp_path, {}) == (None, 2)


def test_problems_without_a_reference_are_counted_and_none_with_one_is_an_error(tmp_path):
    for language, names in (("py", ("a", "b")), ("js", ("a",))):
        for name in names:
            folder = tmp_path / "run" / f"mbpp-{language}-tiny-0.2-reworded"
            completions_of(folder, language, RIGHT["python"], name=name)
    path = tmp_path / "references.jsonl"
    path.write_text(json.dumps({"name": "a", "language": "py", "completion": RIGHT["python"]}) + "\n")
    found = json.loads(run("evaluate", "codebleu", tmp_path / "run", path, "--json").stdout)
    python, javascript = found["mbpp-py-tiny-0.2-reworded"], found["mbpp-js-tiny-0.2-reworded"]
    assert (python["value"], python["clusters"], python["without_reference"]) == (pytest.approx(1), 1, 1)
    assert (javascript["value"], javascript["clusters"], javascript["without_reference"]) == (None, 0, 1)
    assert "no reference" in run("evaluate", "codebleu", tmp_path / "run", path).stdout
    path.write_text(json.dumps({"name": "c", "language": "py", "completion": "x"}) + "\n")
    with pytest.raises(ResultError, match="has a reference for no problem of"):
        raise run("evaluate", "codebleu", tmp_path / "run", path).exception


def test_references_are_read_by_language_and_problem(tmp_path):
    path = tmp_path / "references.jsonl"
    rows = [
        {"name": "a", "language": "py", "completion": "x"},
        {"name": "a", "language": "js", "canonical": "y"},
        {"name": "b", "language": "js", "canonical": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_references(path) == {("py", "a"): "x", ("js", "a"): "y"}
    for line in (b'{"name": "a"}', b"\xff", b'{"name": "a", "language": "py", "completion": 5}', b"[]"):
        path.write_bytes(line + b"\n")
        with pytest.raises(ResultError, match="line 1, is no reference"):
            read_references(path)


def test_other_languages_are_named():
    with pytest.raises(ConfigError, match="fortran"):
        codebleu("", "", "fortran")
