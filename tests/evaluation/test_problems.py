"""Rows become problems, wherever they come from; what is no problem is refused with a reason."""

import gzip
import json

import pytest

from moe_codegen.errors import ConfigError, ProblemError
from moe_codegen.evaluation import ProblemSettings
from moe_codegen.evaluation.problems import read_problems
from tests.evaluation.programs import problem

ROW = {**vars(problem("py")), "stop_tokens": list(problem("py").stop_tokens), "doctests": "transform"}
HUMANEVAL_ROW = {
    "task_id": "HumanEval/7",
    "prompt": "def twice(number):\n",
    "canonical_solution": "",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "twice",
}


def write(path, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_file_of_multipl_e_is_read_as_it_is(name, tmp_path):
    assert read_problems("humaneval", "py", write(tmp_path / name, ROW)) == [problem("py")]


def test_a_folder_is_searched_for_the_dataset_and_the_language(tmp_path):
    write(tmp_path / "humaneval-py.jsonl", ROW)
    write(tmp_path / "mbpp-py.jsonl", ROW | {"name": "other"})
    assert [one.name for one in read_problems("mbpp", "py", tmp_path)] == ["other"]
    with pytest.raises(ProblemError, match=r"has no mbpp-java\.jsonl"):
        read_problems("mbpp", "java", tmp_path)


def test_a_negative_limit_is_refused():
    with pytest.raises(ConfigError, match="limit=-1 must not be negative"):
        ProblemSettings(limit=-1)


def test_parquet_is_read_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([ROW]).to_parquet(tmp_path / "humaneval-py.parquet")
    assert read_problems("humaneval", "py", tmp_path) == [problem("py")]


def test_humaneval_as_published_calls_its_check(tmp_path):
    (read,) = read_problems("humaneval_original", "py", write(tmp_path / "HumanEval.jsonl", HUMANEVAL_ROW))
    assert (read.name, read.language) == ("HumanEval_7", "py")
    program = f"{read.prompt}    return 2 * number\n{read.tests}"
    exec(compile(program, "program", "exec"), {})
    with pytest.raises(AssertionError):
        exec(compile(program.replace("2 * number", "number"), "program", "exec"), {})


def test_mbpp_as_published_shows_its_tests_to_the_model(tmp_path):
    row = {"task_id": 2, "text": "Double it.", "test_list": ["assert twice(1) == 2"], "test_setup_code": "import math"}
    (read,) = read_problems("mbpp_original", "py", write(tmp_path / "mbpp.jsonl", row))
    assert read.prompt == '"""\nDouble it.\nassert twice(1) == 2\n"""\n'
    exec(f"{read.prompt}def twice(number):\n    return 2 * number\n{read.tests}", {})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no problem"),
        ([ROW, ROW], "names twice twice"),
        ([ROW | {"language": "js"}], "holds problems in js, asked for py"),
        ([ROW | {"name": "HumanEval/0"}], "names 'HumanEval/0', and a name is that of a file"),
        ([{"name": "x"}], "is no problem: 'language' is missing"),
        ([["x"]], "is no problem: list indices must be integers or slices, not str; expected"),
        ([ROW, ROW | {"prompt": None}], r"row 2 of .*rows\.jsonl is no problem: `prompt` in it should be of type str"),
        ([ROW | {"stop_tokens": "x"}], "`stop_tokens` in it should be a list, found 'x'"),
        ([HUMANEVAL_ROW | {"prompt": None}], "`prompt` in it should be of type str, found None"),
        ([HUMANEVAL_ROW | {"test": None}], "row 1 of .* is no problem"),
        ([HUMANEVAL_ROW | {"task_id": 7}], "row 1 of .* is no problem"),
    ],
)
def test_rows_that_are_no_problems_are_refused(rows, message, tmp_path):
    with pytest.raises(ProblemError, match=message):
        read_problems("humaneval", "py", write(tmp_path / "rows.jsonl", *rows))


def test_a_damaged_file_and_an_unknown_dataset_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{")
    with pytest.raises(ProblemError, match="cannot be read as JSON lines"):
        read_problems("humaneval", "py", tmp_path / "rows.jsonl")
    (tmp_path / "rows.parquet").write_text("x")
    with pytest.raises(ProblemError, match=r"rows\.parquet cannot be read as Parquet"):
        read_problems("humaneval", "py", tmp_path / "rows.parquet")
    with pytest.raises(ProblemError, match="expected one of humaneval, mbpp"):
        read_problems("apps", "py", tmp_path)
    with pytest.raises(ProblemError, match="humaneval_original is Python only"):
        read_problems("humaneval_original", "java", tmp_path)
