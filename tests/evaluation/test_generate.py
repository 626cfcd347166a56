"""From a model to results: kept as they come, taken up after a kill, and never of something else."""

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from moe_codegen.errors import InfrastructureError, OutputError, ResultError, ResumeError, ToolchainError
from moe_codegen.evaluation import (
    ExecutionSettings,
    ModelSettings,
    ProblemSettings,
    SamplingSettings,
    execute,
    generate,
)
from moe_codegen.evaluation.execution import Kind
from moe_codegen.evaluation.execution.folder import FolderJudge
from moe_codegen.evaluation.execution.log import OutcomeLog, read_outcomes
from moe_codegen.evaluation.execution.outcome import Outcome, submissions_of
from moe_codegen.evaluation.languages import registry
from moe_codegen.evaluation.multipl_e import (
    Completions,
    completion_files,
    read_completions,
    read_results,
    result_files,
    write_completions,
)
from moe_codegen.evaluation.run_folder import OUTCOMES_FILE, read_record
from tests.evaluation.programs import GOOD, INVALID, WRONG, needs, problem
from tests.evaluation.test_problems import write
from tests.tiny import save_dense

SAMPLING = SamplingSettings(num_samples=3, temperature=0.8, max_tokens=12)
BATCHES = ModelSettings(batch_size=2, device="cpu")


def rows(language, count=2):
    return [{**vars(problem(language, f"HumanEval_{n}_twice")), "stop_tokens": ["\n}"]} for n in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_dense(folder, "gpt_bigcode")
    return folder


@pytest.fixture
def problems(tmp_path):
    for language in ("py", "js"):
        write(tmp_path / f"humaneval-{language}.jsonl", *rows(language))
    return ProblemSettings(languages=("py", "js"), problems=str(tmp_path))


def texts(folder):
    return {name: read_completions(path).completions for name, path in completion_files(folder).items()}


def statuses(folder):
    return {
        name: [(result.status, result.exit_code) for result in read_results(path).results]
        for name, path in result_files(folder).items()
    }


def completions_of(folder, language, *answers, name="HumanEval_0_twice"):
    folder.mkdir(exist_ok=True, parents=True)
    one = Completions(**vars(problem(language, name)), completions=answers, temperature=0.2, top_p=0.95, max_tokens=512)
    write_completions(folder, one)
    return one


@needs("py", "js")
def test_a_run_leaves_multipl_es_files_and_a_record(model, problems, tmp_path):
    out = tmp_path / "out"
    report = generate(model, out, problems, SAMPLING, BATCHES)
    assert [folder.name for folder in report.folders] == [
        "humaneval-py-tiny-0.8-reworded",
        "humaneval-js-tiny-0.8-reworded",
    ]
    for folder in report.folders:
        assert [len(some) for some in texts(folder).values()] == [3, 3]
        assert [len(some) for some in statuses(folder).values()] == [3, 3]
        assert report.counts[folder].total() == 6
        outcomes = read_outcomes(folder / OUTCOMES_FILE)
        submissions = [s for path in completion_files(folder).values() for s in submissions_of(read_completions(path))]
        assert {submission.sha256 for submission in submissions} == set(outcomes)
    record = read_record(out)
    assert record == report.record
    assert record.model["parameters"]["total"] == record.model["parameters"]["active"] > 0
    assert len(record.model["files"]["model.safetensors"]) == 64
    assert record.generation["tokens"] > 0
    assert record.execution["toolchain"].keys() == {"python3", "node"}
    assert record.problems[report.folders[0].name]["names"] == ["HumanEval_0_twice", "HumanEval_1_twice"]


@needs("py")
def test_generating_and_executing_apart_is_the_same_as_together(model, problems, tmp_path):
    together = generate(model, tmp_path / "one", problems, SAMPLING, BATCHES)
    apart = generate(
        model, tmp_path / "two", problems, SAMPLING, ModelSettings(batch_size=5, device="cpu"), execute=False
    )
    assert not any(result_files(folder) for folder in apart.folders)
    execute(tmp_path / "two", ExecutionSettings())
    for one, two in zip(together.folders, apart.folders, strict=True):
        assert texts(one) == texts(two)
        assert statuses(one) == statuses(two)


def test_another_model_or_setting_cannot_go_on_with_a_run(model, problems, tmp_path):
    out = tmp_path / "out"
    generate(model, out, problems, SAMPLING, BATCHES, execute=False)
    warmer = SamplingSettings(num_samples=3, temperature=0.9, max_tokens=12)
    with pytest.raises(ResumeError, match=r"begun with other settings \(temperature\);"):
        generate(model, out, problems, warmer, BATCHES, execute=False)
    save_dense(tmp_path / "tiny", "gpt_bigcode", seed=1)
    with pytest.raises(OutputError, match="an evaluation of other model files"):
        generate(tmp_path / "tiny", out, problems, SAMPLING, BATCHES, execute=False)
    with pytest.raises(OutputError, match=r"is not empty and holds no evaluation"):
        generate(model, tmp_path, problems, SAMPLING, BATCHES, execute=False)


def test_a_disk_that_is_full_and_a_folder_that_cannot_be_made_are_explained(model, problems, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="file is no folder that you may write to"):
            generate("nobody/nothing", out, problems, SAMPLING, BATCHES, execute=False)  # before a model is looked for
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OutputError, match=r"no space left for .*out: .*; it goes on where it was"):
            generate(model, tmp_path / "out", problems, SAMPLING, BATCHES, execute=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    generate(model, tmp_path / "out", problems, SAMPLING, BATCHES, execute=False)


@needs("py", "js")
def test_a_run_is_given_more_samples_and_more_problems_but_not_fewer(model, problems, tmp_path):
    whole = generate(model, tmp_path / "whole", problems, SAMPLING, BATCHES)
    out, first = tmp_path / "out", replace(problems, limit=1)
    for limited, sampling in ((first, replace(SAMPLING, num_samples=1)), (first, SAMPLING), (problems, SAMPLING)):
        grown = generate(model, out, limited, sampling, BATCHES)
    for one, two in zip(whole.folders, grown.folders, strict=True):
        assert texts(one) == texts(two)
        assert statuses(one) == statuses(two)
    assert read_record(out).settings == whole.record.settings
    with pytest.raises(ResumeError, match=r"begun with other settings \(limit, num_samples\)"):
        generate(model, out, first, replace(SAMPLING, num_samples=2), BATCHES)


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from moe_codegen.evaluation import ModelSettings, ProblemSettings, SamplingSettings, generate

def kill(title, done, total):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)

model, out, problems = sys.argv[1:]
generate(
    model,
    out,
    ProblemSettings(languages=("py", "js"), problems=problems),
    SamplingSettings(num_samples=3, temperature=0.8, max_tokens=12),
    ModelSettings(batch_size=2, device="cpu"),
    execute=False,
    on_progress=kill,
)
"""


def test_generation_killed_in_the_middle_goes_on_where_it_was(model, problems, tmp_path):
    whole = generate(model, tmp_path / "whole", problems, SAMPLING, BATCHES, execute=False)
    command = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, model, tmp_path / "out", problems.problems]
    assert subprocess.run([str(word) for word in command]).returncode == -signal.SIGKILL
    left = sum(len(read_completions(path).completions) for path in (tmp_path / "out").glob("*/*.json.gz"))
    assert 0 < left < 12
    resumed = generate(model, tmp_path / "out", problems, SAMPLING, BATCHES, execute=False)
    for one, two in zip(whole.folders, resumed.folders, strict=True):
        assert texts(one) == texts(two)
    assert resumed.record.generation["tokens"] == whole.record.generation["tokens"]


@needs("py")
def test_execution_killed_in_the_middle_comes_to_the_same_results(tmp_path):
    answers = [f"    # {n}\n{GOOD['py'] if n % 3 else WRONG['py']}" for n in range(40)]
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        completions_of(folder, "py", *answers)
    execute(folders[0], ExecutionSettings())
    child = os.fork()  # a new process would import for longer than it would run
    if child == 0:
        os.setsid()
        execute(folders[1], ExecutionSettings())
        os._exit(0)
    log, deadline = folders[1] / OUTCOMES_FILE, time.monotonic() + 60
    while (not log.exists() or log.read_bytes().count(b"\n") < 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    judged = log.read_bytes()
    assert 5 <= judged.count(b"\n") < 41
    assert not result_files(folders[1])
    log.write_bytes(judged + b'{"sha256": "cut sho')  # what a kill in the middle of a line leaves
    execute(folders[1], ExecutionSettings())
    assert log.read_bytes().startswith(judged)  # nothing was judged twice
    assert log.read_bytes().count(b"\n") == 41
    assert statuses(folders[0]) == statuses(folders[1])


@needs("py")
def test_equal_programs_run_once_and_count_as_often_as_they_are_there(tmp_path):
    folder = tmp_path / "some"
    completions_of(folder, "py", GOOD["py"], WRONG["py"], GOOD["py"], INVALID["py"], GOOD["py"])
    counts = execute(folder, ExecutionSettings())[folder]
    assert counts == {Kind.PASSED: 3, Kind.WRONG_ANSWER: 1, Kind.COMPILE_ERROR: 1}
    assert len(read_outcomes(folder / OUTCOMES_FILE)) == 3
    before = (folder / OUTCOMES_FILE).read_bytes()
    assert execute(folder, ExecutionSettings())[folder] == counts
    assert (folder / OUTCOMES_FILE).read_bytes() == before


@pytest.mark.parametrize("content", ['{"model": {', "{}", "[]", '{"model": {}, "settings": {}}', '{"model": 5}'])
def test_a_damaged_record_of_a_run_is_an_error_that_says_what_to_do(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ResultError, match=r"run\.json is damaged .*; restore it .* or evaluate into another folder"):
        read_record(tmp_path)


@needs("py")
def test_results_that_are_damaged_or_of_other_completions_are_errors(tmp_path):
    folder = tmp_path / "some"
    completions_of(folder, "py", GOOD["py"])
    execute(folder, ExecutionSettings())
    completions_of(folder, "py", WRONG["py"])
    with pytest.raises(ResultError, match="was made from other completions"):
        execute(folder, ExecutionSettings())
    path = result_files(folder)["HumanEval_0_twice"]
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ResultError, match=r"HumanEval_0_twice\.results\.json\.gz is damaged"):
        execute(folder, ExecutionSettings())


@needs("py", "js")
def test_what_could_not_be_judged_holds_no_other_folders_results_back(tmp_path, monkeypatch):
    write_one = FolderJudge.write

    def fail(judge, completions):
        if completions.language == "js":
            raise InfrastructureError("no room")
        return write_one(judge, completions)

    for language in ("js", "py"):
        completions_of(tmp_path / language, language, GOOD[language])
    monkeypatch.setattr(FolderJudge, "write", fail)
    with pytest.raises(
        InfrastructureError, match="1 problems could not be judged, the first HumanEval_0_twice: no room"
    ):
        execute(tmp_path, ExecutionSettings())
    assert statuses(tmp_path / "py") == {"HumanEval_0_twice": [("OK", 0)]}


@needs("py")
def test_another_evaluators_results_stay_as_they_are(tmp_path):
    folder = tmp_path / "some"
    completions_of(folder, "py", GOOD["py"])
    execute(folder, ExecutionSettings())
    (folder / OUTCOMES_FILE).unlink()
    path = result_files(folder)["HumanEval_0_twice"]
    before = path.read_bytes()
    assert execute(folder, ExecutionSettings())[folder].total() == 0
    assert path.read_bytes() == before


def test_a_log_refuses_other_conditions_and_damaged_lines(tmp_path):
    path = tmp_path / OUTCOMES_FILE
    log = OutcomeLog(path, {"memory_mb": 1024})
    log.append("a", Outcome(Kind.PASSED, "OK", 0))
    log.close()
    assert OutcomeLog(path, {"memory_mb": 1024})["a"].kind is Kind.PASSED
    with pytest.raises(ResumeError, match="another memory_mb"):
        OutcomeLog(path, {"memory_mb": 512})
    path.write_bytes(path.read_bytes().replace(b'"kind": "Passed"', b'"kind": "Possed"'))
    for line in (path.read_bytes(), b'{"conditions": {}}\n"x"\n'):
        path.write_bytes(line)
        for read in (read_outcomes, lambda path: OutcomeLog(path, {})):
            with pytest.raises(ResultError, match=r"outcomes\.jsonl, line 2, is damaged"):
                read(path)
    path.write_bytes(b'{"conditions": 5}\n')
    with pytest.raises(ResultError, match=r"outcomes\.jsonl, line 1, is damaged"):
        OutcomeLog(path, {})


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(ResultError, match="holds no completions and no results"):
        execute(tmp_path, ExecutionSettings())
    with pytest.raises(ResultError, match="is no folder"):
        execute(tmp_path / "nowhere", ExecutionSettings())


@needs("py")
def test_a_missing_compiler_is_named_with_its_package_before_anything_is_written(model, tmp_path, monkeypatch):
    write(tmp_path / "humaneval-cpp.jsonl", *rows("cpp"))
    which = registry.shutil.which
    monkeypatch.setattr(
        registry.shutil, "which", lambda name, path=None: None if name == "g++" else which(name, path=path)
    )
    settings = ProblemSettings(languages=("cpp",), problems=str(tmp_path))
    with pytest.raises(ToolchainError, match=r"C\+\+ needs g\+\+ .*apt-get install g\+\+, or leave"):
        generate(model, tmp_path / "out", settings, SAMPLING, BATCHES)
    assert not (tmp_path / "out").exists()


def test_without_a_sandbox_programs_run_all_the_same(tmp_path):
    folder = tmp_path / "some"
    completions_of(folder, "py", GOOD["py"], WRONG["py"])
    counts = execute(folder, ExecutionSettings(sandbox="none"))[folder]
    assert counts == {Kind.PASSED: 1, Kind.WRONG_ANSWER: 1}
