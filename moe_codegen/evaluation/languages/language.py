"""What the harness knows of a language; a new one is a file with one `Language`, and its line in `registry.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moe_codegen.errors import ProblemError


@dataclass(frozen=True)
class Tool:
    """A program that must be installed.

    Attributes:
        command: its name.
        package: the Debian package that holds it.
        version: the arguments that make it print its version; None where `command` is a file to look for instead.
    """

    command: str
    package: str
    version: tuple[str, ...] | None = ("--version",)


@dataclass(frozen=True)
class Compilation:
    """How a source file becomes what is run.

    Attributes:
        command: leaves `artifact` in its folder.
        artifact: the file that is taken on to the run.
        seconds: it may take.
        precompiled: what most programs begin with, compiled once by `CommandCompiler`; None for nothing.
        server: the name of a compiler that stays and is asked for each program, as `JavaCompiler`; "" for none.
    """

    command: tuple[str, ...]
    artifact: str
    seconds: float = 15
    precompiled: str | None = None
    server: str = ""


@dataclass(frozen=True)
class Language:
    """One language of MultiPL-E.

    Attributes:
        name: MultiPL-E's, such as "js".
        title: as people call it.
        source: the name of the file that holds a program.
        tools: what must be installed.
        run: the command, in the folder with the source or the artifact.
        run_seconds: it may take; MultiPL-E's evaluator gives as much.
        with_marker: (tests, first, second) -> tests that write both parts of a marker on standard output, as one, after
            their last assertion. The writing is itself part of an assertion, so that a program with assertions turned
            off does not do it; the parts are apart until then, so that printing the program does not do it either.
        status: standard error of a run that failed -> MultiPL-E's status.
        compilation: None where the source is run as it is.
        support: further files in the folder of a run.
        invalid_marks: in the standard error of a run: the program is none of this language.
        assertion_marks, memory_marks: a test's assertion failed; memory ran out.
    """

    name: str
    title: str
    source: str
    tools: tuple[Tool, ...]
    run: tuple[str, ...]
    run_seconds: float
    with_marker: Callable[[str, str, str], str]
    status: Callable[[str], str] = lambda stderr: "Exception"
    compilation: Compilation | None = None
    support: Mapping[str, str] = field(default_factory=dict)
    invalid_marks: tuple[str, ...] = ()
    assertion_marks: tuple[str, ...] = ()
    memory_marks: tuple[str, ...] = ()


def before_last(tests: str, closing: int, statement: str) -> str:
    """`tests` with `statement` before the last `closing` braces, which end its main function.

    Raises `ProblemError` for tests that do not end so.
    """
    place = len(tests)
    for _ in range(closing):
        place = tests.rfind("}", 0, place)
        if place < 0 or tests[place:].replace("}", "").strip():
            raise ProblemError(f"tests that should end with {closing} closing braces end with {tests[-40:]!r}")
    return f"{tests[:place]}{statement}\n{tests[place:]}"
