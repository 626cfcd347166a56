import json

import pytest

from moe_codegen.data.filtering.decontaminate import (
    DecontaminateSettings,
    benchmark_patterns,
    decontaminate,
    normal_form,
)
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ConfigError, SourceError
from tests.data.inputs import code, read, row, write

PROBLEMS = [
    {
        "task_id": "Bench/0",
        "prompt": "# Return the two rows that lie closest together in the plane, in order.\ndef closest(rows):\n",
        "canonical_solution": "    best = 0\n    for one in rows:\n        best = max(best, one)\n    return best\n",
    },
    {"task_id": "Bench/1", "prompt": "def add(x, y):\n", "canonical_solution": "    return x + y\n"},
]
JAVA = [
    {"name": "mbpp_1", "prompt": "// Return the sum of what was given.\n", "canonical": "return a.stream().sum();\n}\n"}
]


@pytest.fixture
def benchmarks(tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "py.jsonl").write_text("\n".join(map(json.dumps, PROBLEMS)))
    (tmp_path / "bench" / "java.jsonl").write_text("\n".join(map(json.dumps, JAVA)))
    return (str(tmp_path / "bench"),)


PLANTED = {
    "whole prompt": PROBLEMS[0]["prompt"],
    "solution": PROBLEMS[0]["canonical_solution"],
    "other indentation": PROBLEMS[0]["canonical_solution"].replace("    ", "\t\t\t"),
    "other case and blank lines": PROBLEMS[0]["canonical_solution"].upper().replace("\n", "\n\n  \n"),
    "docstring in another comment": "/* Return the two rows that lie closest together in the plane, in order. */\n",
    "short solution": PROBLEMS[1]["canonical_solution"],
    "short solution, other indentation": "\t\treturn  x+y\n",
    "java solution": JAVA[0]["canonical"],
    "java prompt": JAVA[0]["prompt"],
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_benchmarks_are_removed(tmp_path, benchmarks, name):
    planted = code(0) + PLANTED[name] + code(1)
    folder = write(tmp_path / "in", [row(0), row(1, content=planted), row(2)])
    manifest = decontaminate(open_source(folder), tmp_path / "out", DecontaminateSettings(benchmarks))
    assert [one["path"] for one in read(tmp_path / "out")] == ["src/file0.py", "src/file2.py"]
    (logged,) = map(json.loads, next((tmp_path / "out" / "dropped").iterdir()).read_text().splitlines())
    assert logged["reason"] == "benchmark"
    assert manifest["problems_found"] == {logged["problem"]: 1}


@pytest.mark.parametrize(
    "text", ["total = x + y\n", "return x + y + z\n", "def add(x, y, z):\n", "// Return the sum\n"]
)
def test_what_only_resembles_a_short_pattern_stays(tmp_path, benchmarks, text):
    folder = write(tmp_path / "in", [row(0, content=code(0) + text)])
    decontaminate(open_source(folder), tmp_path / "out", DecontaminateSettings(benchmarks))
    assert len(read(tmp_path / "out")) == 1


def test_normal_form():
    assert normal_form(b"  Def F(x):\r\n\n\t# Some 'Text'\n") == b"\ndeff(x):\nsometext\n"


def test_bad_benchmarks(tmp_path):
    with pytest.raises(ConfigError, match="no benchmark to look for"):
        DecontaminateSettings()
    with pytest.raises(SourceError, match="does not exist"):
        benchmark_patterns((str(tmp_path / "none.jsonl"),))
    (tmp_path / "a.jsonl").write_text('{"question": "x"}')
    with pytest.raises(SourceError, match=r"a\.jsonl has no column of prompts or solutions"):
        benchmark_patterns((str(tmp_path / "a.jsonl"),))
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(SourceError, match="is not JSON Lines"):
        benchmark_patterns((str(tmp_path / "a.jsonl"),))
    (tmp_path / "a.jsonl").write_text("[1, 2]")
    with pytest.raises(SourceError, match="should hold a JSON object on each line"):
        benchmark_patterns((str(tmp_path / "a.jsonl"),))
    for name in ("a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(SourceError, match=rf"benchmark .*{name} cannot be read"):
            benchmark_patterns((str(tmp_path / name),))


def test_benchmarks_in_parquet_and_solutions_in_lists(tmp_path):
    solutions = [PROBLEMS[1]["canonical_solution"], JAVA[0]["canonical"]]
    write(tmp_path / "bench", [{"task_id": 1, "solution": solutions}])
    found = {pattern.text for pattern in benchmark_patterns((str(tmp_path / "bench"),))}
    assert found == set(map(normal_form, map(str.encode, solutions)))
