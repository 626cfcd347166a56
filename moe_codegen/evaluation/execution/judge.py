"""One program, from its text to its outcome."""

import secrets

from moe_codegen.errors import InfrastructureError
from moe_codegen.evaluation.execution.compilers import Built, open_compiler
from moe_codegen.evaluation.execution.outcome import Kind, Outcome, Submission, readable
from moe_codegen.evaluation.languages import Language
from moe_codegen.evaluation.sandbox import End, Finished, Limits, Sandbox

_BUSY = 0.8  # share of its time that a program which loops is seen to compute; less may be the machine's load


class Judge:
    """Compiles and runs the programs of one language."""

    def __init__(self, language: Language, sandbox: Sandbox, memory_bytes: int) -> None:
        self._language, self._sandbox = language, sandbox
        self._compiler = open_compiler(language, sandbox)
        self._limits = Limits(language.run_seconds, memory_bytes)
        self._support = {name: text.encode() for name, text in language.support.items()}

    def judge(self, submission: Submission, worker: int) -> tuple[Outcome, bool]:
        """The outcome, and whether it may be due to the machine's load, so that it should be tried again alone.

        Raises:
            InfrastructureError: what failed is around the program, not in it.
            ProblemError: tests of an unknown form.
        """
        marker = secrets.token_hex(8), secrets.token_hex(8)
        source = f"{submission.head}\n{self._language.with_marker(submission.tests, *marker)}"
        name, content, compiled = self._language.source, source.encode(errors="replace"), 0.0
        if self._compiler is not None and self._language.compilation is not None:
            built = self._compiler.compile(source, worker)
            if built.artifact is None:
                return _compiler_failed(built), built.end is End.TIME
            name, content, compiled = self._language.compilation.artifact, built.artifact, built.seconds
        finished = self._sandbox.run(
            self._language.run,
            {name: content, **self._support},
            self._limits,
            worker=worker,
            marker="".join(marker).encode(),
        )
        if finished.end is End.BROKEN:
            raise InfrastructureError(f"a program did not start: {readable(finished.stderr)}")
        starved = finished.end is End.TIME and finished.cpu_seconds < _BUSY * finished.seconds
        return self._outcome(finished, compiled), starved

    def close(self) -> None:
        """Let go of the compiler."""
        if self._compiler is not None:
            self._compiler.close()

    def _outcome(self, finished: Finished, compiled: float) -> Outcome:
        kind, status, exit_code = self._classify(finished)
        stdout, stderr = readable(finished.stdout), readable(finished.stderr)
        return Outcome(kind, status, exit_code, stdout, stderr, round(compiled + finished.seconds, 3))

    def _classify(self, finished: Finished) -> tuple[Kind, str, int]:
        """The kind, and MultiPL-E's status and exit code."""
        if finished.end is End.TIME:
            return Kind.TIMEOUT, "Timeout", -1
        if finished.end is End.OUTPUT:
            return Kind.OUTPUT_LIMIT, "Timeout", -1  # where its evaluator waits until the time is up
        if finished.end is End.MEMORY or finished.exit_code is None:
            return Kind.OUT_OF_MEMORY, "Exception", -9
        if finished.exit_code == 0:
            return (Kind.PASSED, "OK", 0) if finished.marked else (Kind.EARLY_EXIT, "Exception", 1)
        # What a program dies of it says last, and a long message would push it out of the beginning.
        said = (finished.stderr + finished.stderr_tail).decode(errors="replace")
        return self._failure(said), self._language.status(said), finished.exit_code

    def _failure(self, said: str) -> Kind:
        for kind, marks in (
            (Kind.OUT_OF_MEMORY, self._language.memory_marks),
            (Kind.COMPILE_ERROR, self._language.invalid_marks),
            (Kind.WRONG_ANSWER, self._language.assertion_marks),
        ):
            if any(mark in said for mark in marks):
                return kind
        return Kind.EXCEPTION


def _compiler_failed(built: Built) -> Outcome:
    kind = Kind.COMPILE_TIMEOUT if built.end is End.TIME else Kind.COMPILE_ERROR
    return Outcome(kind, "SyntaxError", built.exit_code, "", readable(built.said), round(built.seconds, 3))
