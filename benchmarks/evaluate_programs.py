"""Programs judged per minute: ours, sandboxed, beside the way MultiPL-E's own evaluator runs them, unprotected.

The rival is written here from what that evaluator does: a command for each step, no header and no compiler kept, and a
look every tenth of a second whether the process has ended.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.registry import Result, Row, case
from moe_codegen.evaluation.execution import Executor, Kind, Submission
from moe_codegen.evaluation.languages import find_language
from moe_codegen.evaluation.languages.java import JAVATUPLES
from moe_codegen.evaluation.problems import read_problems
from moe_codegen.evaluation.sandbox import open_sandbox

STEPS = {  # language -> source file, commands
    "py": ("f.py", [["python3", "f.py"]]),
    "js": ("f.js", [["node", "f.js"]]),
    "java": (
        "f.java",
        [
            ["javac", "-encoding", "UTF8", "-cp", JAVATUPLES, "-d", "out", "f.java"],
            ["java", "-ea", "-cp", f"out:{JAVATUPLES}", "Problem"],
        ],
    ),
    "cpp": ("f.cpp", [["g++", "f.cpp", "-o", "f", "-std=c++17"], ["./f"]]),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which languages, how many problems, how many workers."""
    parser.add_argument("--languages", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--problems", type=int, default=30, help="each with a solution and a broken twin; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ours-only", action="store_true", help="leave the rival out, which is slow")


@case("evaluate", "programs judged per minute, beside MultiPL-E's way of running them", add_options)
def run(options: argparse.Namespace) -> Result:
    """Judge the same programs both ways, one after the other."""
    folder = os.environ.get("MOE_CODEGEN_MULTIPLE")
    if not folder:
        return Result([], notes=["set MOE_CODEGEN_MULTIPLE to a folder with MultiPL-E's rows and solutions"])
    sandbox, rows = open_sandbox("bubblewrap"), list[Row]()
    for name in options.languages:
        submissions = list(read_submissions(Path(folder), name, options.problems))
        with Executor(sandbox, [find_language(name)], workers=options.workers) as executor:
            executor.submit(submissions[0])
            executor.finish()  # headers compiled and compilers started, once in an evaluation
            ours, passed = timed(judge, executor, submissions)
        row: Row = {
            "language": name,
            "programs": len(submissions),
            "ours s": ours,
            "per minute": 60 * len(submissions) / ours,
        }
        if not options.ours_only:
            theirs, passed_plainly = timed(run_plainly, name, submissions, options.workers)
            row |= {"MultiPL-E's way s": theirs, "ratio": theirs / ours, "same verdicts": passed == passed_plainly}
        rows.append(row)
    return Result(
        rows, notes=["ratio: how many times as many programs a minute; ours in the sandbox, the rival without"]
    )


def read_submissions(folder: Path, language: str, count: int) -> Iterator[Submission]:
    """The solution and the broken twin of each problem."""
    problems = {problem.name: problem for problem in read_problems("humaneval", language, folder / "prompts")}
    lines = (folder / f"solutions/multipl-e-humaneval-{language}.jsonl").read_text().splitlines()
    for line in lines[: count or None]:
        row = json.loads(line)
        for kind in ("canonical", "buggy"):
            if row.get(kind) is not None:
                problem = problems[row["name"]]
                yield Submission(language, problem.prompt + row[kind], problem.tests)


def judge(executor: Executor, submissions: list[Submission]) -> list[bool]:
    """Which pass, by our executor."""
    futures = [executor.submit(submission) for submission in submissions]
    executor.finish()
    return [future.result().kind is Kind.PASSED for future in futures]


def run_plainly(language: str, submissions: list[Submission], workers: int) -> list[bool]:
    """Which pass, by commands alone."""
    source, commands = STEPS[language]
    seconds = find_language(language).run_seconds

    def one(submission: Submission) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / source).write_text(submission.program)
            return all(succeeds(command, folder, seconds) for command in commands)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, submissions))


def succeeds(command: list[str], folder: str, seconds: float) -> bool:
    """Whether `command` ends with exit status 0 in time, looked at every tenth of a second."""
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(int(seconds * 10)):
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    return process.wait() == 0


def timed(function: Callable[..., list[bool]], *arguments: Any) -> tuple[float, list[bool]]:
    """Seconds, and what `function` returned."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result
