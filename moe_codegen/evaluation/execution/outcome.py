"""What became of a program: kinds of failure kept apart, and MultiPL-E's words for them."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moe_codegen.evaluation.multipl_e import OUTPUT_CHARACTERS, Completions, Result


class Kind(StrEnum):
    """How a program ended."""

    PASSED = "Passed"
    COMPILE_ERROR = "CompileError"  # none of its language; an interpreter's SyntaxError too
    COMPILE_TIMEOUT = "CompileTimeout"
    WRONG_ANSWER = "WrongAnswer"  # an assertion of the tests failed
    EXCEPTION = "Exception"  # it failed in another way
    EARLY_EXIT = "EarlyExit"  # exit status 0 before the tests had ended
    TIMEOUT = "Timeout"
    OUT_OF_MEMORY = "OutOfMemory"
    OUTPUT_LIMIT = "OutputLimit"


@dataclass(frozen=True)
class Submission:
    """A program to be judged; `head` is its prompt and completion."""

    language: str
    head: str
    tests: str

    @property
    def program(self) -> str:
        """The text, as MultiPL-E puts it together."""
        return f"{self.head}\n{self.tests}"

    @property
    def sha256(self) -> str:
        """What identifies it: the hash of its text in its language."""
        return hashlib.sha256(f"{self.language}\0{self.program}".encode(errors="surrogatepass")).hexdigest()


def submissions_of(completions: Completions) -> list[Submission]:
    """One for each sample."""
    return [
        Submission(completions.language, completions.prompt + completion, completions.tests)
        for completion in completions.completions
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of one program.

    Attributes:
        kind: ours.
        status, exit_code: MultiPL-E's.
        stdout, stderr: their first `OUTPUT_CHARACTERS`, of the compiler where it was the last to run.
        seconds: from its first command to the end of its last.
        timestamp: seconds since 1970 at which it had run.
    """

    kind: Kind
    status: str
    exit_code: int
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    timestamp: int = field(default_factory=lambda: int(time.time()))

    def as_result(self, program: str) -> Result:
        """MultiPL-E's record of it."""
        return Result(program, self.timestamp, self.stdout, self.stderr, self.exit_code, self.status)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Outcome":
        """From what `vars` gave. Raises TypeError or ValueError for anything else."""
        return cls(**{**record, "kind": Kind(record["kind"])})


def readable(output: bytes) -> str:
    """The first `OUTPUT_CHARACTERS` of what a program wrote; bytes that are no UTF-8 are left out."""
    return output.decode(errors="ignore")[:OUTPUT_CHARACTERS]
