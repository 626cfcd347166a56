"""What every sandbox does, and the choice of one."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from moe_codegen.errors import SandboxError
from moe_codegen.evaluation.sandbox.bubblewrap import Bubblewrap
from moe_codegen.evaluation.sandbox.limits import Limits
from moe_codegen.evaluation.sandbox.process import HEAD_BYTES, Finished
from moe_codegen.evaluation.sandbox.selftest import check_sandbox
from moe_codegen.evaluation.sandbox.unconfined import Unconfined


class Sandbox(Protocol):
    """Starts programs that nobody has read."""

    name: str
    path: str  # where commands are looked up, as PATH

    def version(self) -> str:
        """What a record says of it."""
        ...

    def run(
        self,
        command: Sequence[str],
        files: Mapping[str, bytes],
        limits: Limits,
        *,
        worker: int = 0,
        shown: Mapping[str, Path] | None = None,
        marker: bytes = b"",
        keep_bytes: int = HEAD_BYTES,
    ) -> Finished:
        """Run `command` in a new folder, and wait for its end.

        Args:
            files: name in that folder -> content; each can be executed.
            worker: which one asks; two at a time must not be the same.
            shown: name in that folder -> a folder of ours, to be read only.
            marker, keep_bytes: as of `supervise`.
        """
        ...

    def start(
        self, command: Sequence[str], files: Mapping[str, bytes], limits: Limits, *, worker: int = 0
    ) -> subprocess.Popen[bytes]:
        """Start `command`, which stays, with pipes to talk to it; of the limits those of the kernel hold."""
        ...


def open_sandbox(kind: str) -> Sandbox:
    """The sandbox `kind`, tested; "none" is none at all.

    Raises:
        SandboxError: unknown, cannot be built here, or leaks.
    """
    if sys.platform != "linux":
        raise SandboxError(f"programs are run on Linux only, this is {sys.platform}; `evaluate generate` works here")
    if kind == Unconfined.name:
        return Unconfined()
    if kind != Bubblewrap.name:
        raise SandboxError(f"unknown sandbox {kind!r}; expected {Bubblewrap.name}, or {Unconfined.name} to have none")
    sandbox = Bubblewrap()
    check_sandbox(sandbox)
    return sandbox
