"""Against MultiPL-E itself: its rows, solutions that must pass, twins that must fail, its own evaluator's results."""

import json

import pytest

from moe_codegen.evaluation.execution import Executor, Kind, Submission
from moe_codegen.evaluation.languages import find_language
from moe_codegen.evaluation.multipl_e import read_results, result_files
from moe_codegen.evaluation.problems import COUNTS, read_problems
from moe_codegen.evaluation.unpassable import UNPASSABLE
from tests.evaluation.multiple import multiple
from tests.evaluation.programs import needs

in_each_language = pytest.mark.parametrize(
    "language", [pytest.param(name, marks=needs(name)) for name in ("py", "js", "java", "cpp")]
)


def problems_of(language):
    return {problem.name: problem for problem in read_problems("humaneval", language, multiple() / "prompts")}


@in_each_language
def test_every_solution_passes_and_every_broken_twin_fails(language, sandbox):
    problems = problems_of(language)
    path = multiple() / f"solutions/multipl-e-humaneval-{language}.jsonl"
    solutions = [json.loads(line) for line in path.read_text().splitlines()]
    with Executor(sandbox, [find_language(language)], workers=2) as executor:
        futures = {
            (row["name"], kind): executor.submit(Submission(language, problem.prompt + row[kind], problem.tests))
            for row in solutions
            for kind in ("canonical", "buggy")
            if row.get(kind) is not None and (problem := problems[row["name"]])
        }
        executor.finish()
    passed = {key for key, future in futures.items() if future.result().kind is Kind.PASSED}
    assert passed == {key for key in futures if key[1] == "canonical"}
    unpassable = {row["name"] for row in solutions if row.get("unpassable")}
    assert unpassable == set(UNPASSABLE.get(("humaneval", language), {}))
    assert len(passed) == len(problems) - len(unpassable)


@needs("py")
def test_every_solution_of_mbpp_passes(sandbox):
    problems = {problem.name: problem for problem in read_problems("mbpp", "py", multiple() / "prompts")}
    lines = (multiple() / "solutions/multipl-e-mbpp-py.jsonl").read_text().splitlines()
    with Executor(sandbox, [find_language("py")], workers=2) as executor:
        futures = {}
        for row in map(json.loads, lines):
            problem = problems[row["name"]]
            futures[row["name"]] = executor.submit(Submission("py", problem.prompt + row["canonical"], problem.tests))
        executor.finish()
    assert [name for name, future in futures.items() if future.result().kind is not Kind.PASSED] == []


@in_each_language
def test_the_status_is_what_multipl_es_own_evaluator_wrote(language, sandbox):
    problems = problems_of(language)
    theirs = {
        (name, index): result
        for name, path in result_files(multiple() / "official-results-sample" / language).items()
        for index, result in enumerate(read_results(path).results)
    }
    with Executor(sandbox, [find_language(language)], workers=2) as executor:
        futures = {}
        for (name, index), result in theirs.items():
            tests = problems[name].tests
            assert result.program.endswith(f"\n{tests}")
            head = result.program.removesuffix(f"\n{tests}")
            futures[name, index] = executor.submit(Submission(language, head, tests))
        executor.finish()
    ours = {key: (future.result().status, future.result().exit_code) for key, future in futures.items()}
    assert ours == {key: (result.status, result.exit_code) for key, result in theirs.items()}


@pytest.mark.parametrize(("dataset", "language"), COUNTS)
def test_the_rows_are_as_many_as_we_expect_of_a_folder(dataset, language):
    assert len(read_problems(dataset, language, multiple() / "prompts")) == COUNTS[dataset, language]
