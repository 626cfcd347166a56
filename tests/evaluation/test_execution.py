"""Programs that pass, fail and misbehave: each is told apart, contained, and nobody else's business."""

import os

import pytest

from moe_codegen.errors import InfrastructureError, ProblemError
from moe_codegen.evaluation import ExecutionSettings
from moe_codegen.evaluation.execution import Executor, Kind, Submission, compilers
from moe_codegen.evaluation.execution import judge as judging
from moe_codegen.evaluation.languages.language import before_last
from moe_codegen.evaluation.sandbox import End
from tests.evaluation.programs import (
    CPP,
    GOOD,
    INVALID,
    JAVA,
    LANGUAGE_NAMES,
    PROMPTS,
    WRONG,
    hasty,
    needs,
    submission,
)

ASSERTION = {"py": "Exception", "js": "AssertionError", "ts": "AssertionError", "java": "Exception", "cpp": "Exception"}
in_each_language = pytest.mark.parametrize(
    "language", [pytest.param(name, marks=needs(name)) for name in LANGUAGE_NAMES]
)


@in_each_language
def test_right_wrong_and_invalid_are_told_apart(language, judged):
    outcomes = judged(language, *(submission(language, text[language]) for text in (GOOD, WRONG, INVALID)))
    right, wrong, invalid = outcomes
    assert (right.kind, right.status, right.exit_code, right.stdout) == (Kind.PASSED, "OK", 0, "")
    assert (wrong.kind, wrong.status) == (Kind.WRONG_ANSWER, ASSERTION[language])
    assert wrong.exit_code == (-6 if language == "cpp" else 1)
    assert (invalid.kind, invalid.status) == (Kind.COMPILE_ERROR, "SyntaxError")
    assert invalid.exit_code != 0


def py(body, head="def twice(number):\n    return 2 * number\n"):
    """A right solution that does something else besides."""
    return Submission("py", head + body, PROMPTS["py"][1])


def wrong_py(body):
    return py(body, "def twice(number):\n    return 0\n")


HOSTILE = {
    "fork bomb": (py("import os\nwhile True: os.fork()\n"), {Kind.EXCEPTION}),
    "threads": (
        py("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[99], daemon=True).start()\n"),
        {Kind.EXCEPTION},
    ),
    "memory hog": (py("hog = []\nwhile True: hog.append(bytearray(10**7))\n"), {Kind.OUT_OF_MEMORY}),
    "many memory hogs": (
        py("import os, time\nfor _ in range(9): os.fork()\nhog = bytearray(b'x') * (100 << 20)\ntime.sleep(9)\n"),
        {Kind.OUT_OF_MEMORY, Kind.EXCEPTION},
    ),
    "endless output": (py("while True: print('x' * 1000)\n"), {Kind.OUTPUT_LIMIT}),
    "endless loop": (py("while True: pass\n"), {Kind.TIMEOUT}),
    "endless sleep": (py("import time; time.sleep(1000)\n"), {Kind.TIMEOUT}),
    "os._exit(0)": (py("import os; os._exit(0)\n"), {Kind.EARLY_EXIT}),
    "sys.exit()": (py("import sys; sys.exit()\n"), {Kind.EARLY_EXIT}),
    "assertions turned off": (
        wrong_py("import os\nif __debug__: os.execv('/usr/bin/python3', ['python3', '-O', __file__])\n"),
        {Kind.EARLY_EXIT},
    ),
    "killing the parent": (py("import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\n"), {Kind.EXCEPTION}),
    "writing to home": (py(f"open({str(__file__)!r} + 'x', 'w')\nopen('/root/x', 'w')\n"), {Kind.EXCEPTION}),
    "reading the harness": (py(f"open({str(judging.__file__)!r})\n"), {Kind.EXCEPTION}),
    "opening a socket": (
        py("import socket; socket.create_connection(('127.0.0.1', 22), 1)\n"),
        {Kind.EXCEPTION},
    ),
    "a daemon": (
        wrong_py("import os, time\nif os.fork(): os._exit(0)\nos.setsid()\nwhile True: time.sleep(1)\n"),
        {Kind.EARLY_EXIT},
    ),
    "filling the disk": (
        py("for number in range(10**6): open(str(number), 'wb').write(b'x' * 10**7)\n"),
        {Kind.EXCEPTION},
    ),
    "no UTF-8": (wrong_py("import os\nos.write(1, b'\\xff\\xfe')\nos.write(2, b'\\xff\\xfe')\n"), {Kind.WRONG_ANSWER}),
}


@needs("py")
def test_hostile_programs_are_contained_and_disturb_nobody(sandbox):
    with Executor(sandbox, [hasty("py", 4)], workers=2, memory_bytes=256 << 20) as executor:
        futures, neighbours = {}, []
        for name, (hostile, _) in HOSTILE.items():
            futures[name] = executor.submit(hostile)
            neighbours.append(executor.submit(py(f"# beside {name}\n")))
        executor.finish()
    kinds = {name: future.result().kind for name, future in futures.items()}
    assert {name: kind for name, kind in kinds.items() if kind not in HOSTILE[name][1]} == {}
    assert [future.result().kind for future in neighbours] == [Kind.PASSED] * len(HOSTILE)
    early = futures["os._exit(0)"].result()
    assert (early.status, early.exit_code) == ("Exception", 1)
    endless = futures["endless output"].result()
    assert (endless.status, endless.exit_code, len(endless.stdout)) == ("Timeout", -1, 2048)


TRICKS = {
    "js": {
        "process.exit(0);": Kind.EARLY_EXIT,
        "require('node:assert').deepEqual = () => {}; return 0;": Kind.WRONG_ANSWER,
        "require('assert').strict.deepEqual = () => {}; require('assert').deepEqual = () => {}; return 0;": (
            Kind.WRONG_ANSWER
        ),
    },
    "java": {
        "System.exit(0); return 0;": Kind.EARLY_EXIT,
        "Runtime.getRuntime().halt(0); return 0;": Kind.EARLY_EXIT,
        "System.setOut(null); return 2 * number;": Kind.PASSED,
        "var hog = new ArrayList<long[]>(); while (true) hog.add(new long[1 << 22]);": Kind.OUT_OF_MEMORY,
    },
    "cpp": {
        "exit(0);": Kind.EARLY_EXIT,
        "\n#undef assert\n#define assert(x)\n    return 0;": Kind.WRONG_ANSWER,
        "\n#define NDEBUG\n#include <assert.h>\n    return 0;": Kind.WRONG_ANSWER,
        "std::vector<std::string> hog; while (true) hog.emplace_back(10'000'000, 'x');": Kind.OUT_OF_MEMORY,
        '\n#include "/etc/shadow"\n': Kind.COMPILE_ERROR,
    },
}


@pytest.mark.parametrize("language", [pytest.param(name, marks=needs(name)) for name in TRICKS])
def test_the_tricks_of_other_languages_do_not_pass(language, judged):
    ends = {"js": "\n}", "java": "\n", "cpp": "\n"}
    submissions = [submission(language, trick + ends[language]) for trick in TRICKS[language]]
    kinds = [outcome.kind for outcome in judged(language, *submissions)]
    assert dict(zip(TRICKS[language], kinds, strict=True)) == TRICKS[language]


PRINTING_ITSELF = {
    "py": "    print(open(__file__).read())\n    raise SystemExit\n",
    "js": "  console.log(require('fs').readFileSync(__filename, 'utf8'));\n  process.exit(0);\n}",
    "ts": "  console.log(require('fs').readFileSync('program.js', 'utf8'));\n"
    "  (globalThis as any).process.exit(0);\n  return 0;\n}",
    "java": '        try { new java.io.FileInputStream("program.jar").transferTo(System.out); }\n'
    "        catch (Exception e) {}\n"
    "        System.exit(0);\n        return 0;\n",
    "cpp": '    std::cout << std::ifstream("program").rdbuf();\n    std::cout.flush();\n    exit(0);\n',
}


@in_each_language
def test_a_program_that_prints_its_own_file_has_not_passed(language, judged):
    (outcome,) = judged(language, submission(language, PRINTING_ITSELF[language]))
    assert outcome.kind is Kind.EARLY_EXIT


@needs("cpp")
def test_a_program_without_the_usual_headers_is_compiled_as_it_is(judged):
    prompt, tests, _ = PROMPTS["cpp"]
    with_assert = prompt.replace(CPP, "#include <assert.h>\n")
    needs_more = Submission("cpp", with_assert + "    std::string text; return 2 * number;\n", tests)
    enough = Submission("cpp", with_assert + "    return 2 * number;\n", tests)
    assert [outcome.kind for outcome in judged("cpp", needs_more, enough)] == [Kind.COMPILE_ERROR, Kind.PASSED]


@needs("cpp")
def test_compiled_headers_of_a_killed_process_are_removed(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr(compilers.tempfile, "tempdir", str(tmp_path))
    for process in ("99999999", str(os.getpid())):
        (tmp_path / f"moe-codegen-headers-{process}-x").mkdir()
    monkeypatch.setattr(compilers.CommandCompiler, "_precompile", lambda self, header: None)
    compilers.open_compiler(hasty("cpp"), sandbox).close()
    assert [folder.name for folder in tmp_path.iterdir()] == [f"moe-codegen-headers-{os.getpid()}-x"]


@needs("java")
def test_one_javac_compiles_many_programs_and_mixes_none(judged):
    prompt, tests, _ = PROMPTS["java"]
    helper = prompt.replace("class Problem {\n", "class Helper { static long two() { return 2; } }\nclass Problem {\n")
    first = Submission("java", f"{helper}        return Helper.two() * number;\n", tests)
    second = Submission("java", f"{prompt}        return Helper.two() * number;\n", tests)
    assert prompt.startswith(JAVA)
    (one,), (other,) = judged("java", first), judged("java", second)
    assert one.kind is Kind.PASSED
    assert other.kind is Kind.COMPILE_ERROR
    assert "cannot find symbol" in other.stderr


@needs("py")
def test_much_output_and_a_long_error_do_not_change_the_verdict(judged):
    much = py("print('x' * 500_000)\n")
    long_error = py("raise ValueError('x' * 100_000 + ' SyntaxError is only said to have been')\n")
    chatty, failing = judged("py", much, long_error)
    assert (chatty.kind, len(chatty.stdout)) == (Kind.PASSED, 2048)
    assert failing.exit_code == 1


class Slow:
    """A sandbox that says a program ran out of time, the first time, having had hardly any."""

    def __init__(self, sandbox, end, cpu_share):
        self._sandbox, self._end, self._share, self.runs = sandbox, end, cpu_share, 0
        self.name, self.path = sandbox.name, sandbox.path

    def run(self, *arguments, **options):
        self.runs += 1
        finished = self._sandbox.run(*arguments, **options)
        if self.runs > 1:
            return finished
        return type(finished)(**{**vars(finished), "end": self._end, "cpu_seconds": self._share * finished.seconds})


@needs("py")
@pytest.mark.parametrize(
    ("end", "share", "kind", "runs"),
    [
        (End.TIME, 0.3, Kind.PASSED, 2),
        (End.TIME, 1.0, Kind.TIMEOUT, 1),
        (End.BROKEN, 0.0, Kind.PASSED, 2),
    ],
    ids=["starved", "busy", "broken"],
)
def test_what_the_machine_may_be_to_blame_for_is_tried_again_alone(end, share, kind, runs, sandbox):
    slow = Slow(sandbox, end, share)
    with Executor(slow, [hasty("py")], workers=2) as executor:
        future = executor.submit(py(""))
        executor.finish()
    assert (future.result().kind, slow.runs) == (kind, runs)


@needs("py")
def test_what_cannot_be_judged_twice_is_an_error_and_no_outcome(sandbox):
    broken = Slow(sandbox, End.BROKEN, 0)
    broken.run = lambda *arguments, **options: type("Finished", (), {"end": End.BROKEN, "stderr": b"no room"})()
    with Executor(broken, [hasty("py")], workers=1) as executor:
        future = executor.submit(py(""))
        executor.finish()
    with pytest.raises(InfrastructureError, match="did not start: no room"):
        future.result()


def test_there_are_as_many_workers_as_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7})
    assert ExecutionSettings().num_workers == 3
    assert ExecutionSettings(workers=5).num_workers == 5


def test_a_statement_goes_before_the_last_braces():
    assert before_last("}\nint main() {\n  a;\n}\n", 1, "b;") == "}\nint main() {\n  a;\nb;\n}\n"
    assert before_last("{ { a; } }", 2, "b;") == "{ { a; b;\n} }"
    with pytest.raises(ProblemError, match="should end with 1 closing braces"):
        before_last("int main() {} // end", 1, "b;")
