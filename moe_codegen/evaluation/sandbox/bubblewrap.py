"""Programs in bubblewrap: namespaces of their own, no network, an unprivileged user, one writable folder in memory.

What is shown is read-only: the system's own programs and libraries under /usr. Nothing of the caller's files is there.
A root caller changes to a user id that is nobody's before bubblewrap starts, so that neither a capability nor a file
permission is left even to one who finds a way out; one id for each worker, so that no program can signal another's.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moe_codegen.errors import SandboxError
from moe_codegen.evaluation.sandbox.limits import Limits
from moe_codegen.evaluation.sandbox.process import HEAD_BYTES, End, Finished, supervise

FOLDER = "/tmp"  # the program's own, and the only one it can write to
PATH = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": FOLDER, "TMPDIR": FOLDER, "LANG": "C.UTF-8"}
_TOPS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr, or folders on older systems
_SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/java*", "/etc/localtime")  # of programs, not of people
_FIRST_USER = 1_900_000_000  # far above people, services and the ranges that containers are given


class Bubblewrap:
    """Starts programs in sandboxes. Raises `SandboxError` where this machine has no bubblewrap or forbids it."""

    name = "bubblewrap"
    path = PATH

    def __init__(self) -> None:
        for program, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("setpriv", "util-linux")):
            if shutil.which(program) is None:
                raise SandboxError(
                    f"the sandbox needs {program}: install the Debian package {package}, or run programs unprotected "
                    "with --sandbox none, on a machine that has nothing to lose"
                )
        self._user = _FIRST_USER + os.getpid() % 1_000_000 * 64
        self._common = [
            *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
            *("--cap-drop", "ALL", "--clearenv", "--hostname", "sandbox"),
            *_flags(("--setenv", name, value) for name, value in ENVIRONMENT.items()),
            *_shown(),
            *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        ]

    def version(self) -> str:
        """Such as `bubblewrap 0.8.0`."""
        return subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True).stdout.strip()

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
        """Run `command` and wait for its end; see `Sandbox.run`."""
        status, reported = os.pipe()
        try:
            process = self._popen(command, files, limits, worker, shown, subprocess.DEVNULL, reported)
        finally:
            os.close(reported)
        with open(status, "rb") as report:
            finished = supervise(process, limits, marker=marker, keep_bytes=keep_bytes)
            started = any("exit-code" in json.loads(line) for line in report.read().splitlines())
        if finished.end is End.EXIT and not started:
            return replace(finished, end=End.BROKEN)
        if finished.exit_code is not None and finished.exit_code > 128:  # how bubblewrap reports a signal
            return replace(finished, exit_code=128 - finished.exit_code)
        return finished

    def start(
        self, command: Sequence[str], files: Mapping[str, bytes], limits: Limits, *, worker: int = 0
    ) -> subprocess.Popen[bytes]:
        """Start `command` with pipes to talk to it; to kill the process ends all that is in its sandbox."""
        return self._popen(command, files, limits, worker, None, subprocess.PIPE, None)

    def _popen(
        self,
        command: Sequence[str],
        files: Mapping[str, bytes],
        limits: Limits,
        worker: int,
        shown: Mapping[str, Path] | None,
        stdin: int,
        report_to: int | None,
    ) -> subprocess.Popen[bytes]:
        descriptors = {name: _in_memory(content) for name, content in files.items()}
        arguments = [
            *self._become(worker),
            "bwrap",
            *self._common,
            *("--size", str(limits.disk_bytes), "--tmpfs", FOLDER),
            *_flags(("--perms", "0755", "--file", str(fd), f"{FOLDER}/{name}") for name, fd in descriptors.items()),
            *_flags(("--ro-bind", str(path), f"{FOLDER}/{name}") for name, path in (shown or {}).items()),
            *("--remount-ro", "/", "--chdir", FOLDER),
            *(("--json-status-fd", str(report_to)) if report_to is not None else ()),
            "--",
            *limits.prlimit(),
            *command,
        ]
        passed = [*descriptors.values(), *([report_to] if report_to is not None else [])]
        try:
            return subprocess.Popen(
                arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=passed
            )
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)

    def _become(self, worker: int) -> list[str]:
        """The command that starts another one as this worker's user; only root can, and needs to."""
        if os.geteuid() != 0:
            return []
        # A command of its own, as a change of user inside Popen would copy the page tables of a process with a model.
        user = str(self._user + worker)
        return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]


def _shown() -> list[str]:
    """The arguments that show the system's programs, read-only."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for top in map(Path, _TOPS):
        if top.is_symlink():
            arguments += ["--symlink", str(top.readlink()), str(top)]
        elif top.exists():
            arguments += ["--ro-bind", str(top), str(top)]
    arguments += ["--perms", "0755", "--dir", "/etc"]  # without the mode java cannot reach what is in it
    for pattern in _SETTINGS:
        for path in sorted(Path("/").glob(pattern[1:])):
            arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def _flags(groups: Iterable[Sequence[str]]) -> list[str]:
    return [part for group in groups for part in group]


def _in_memory(content: bytes) -> int:
    """A file without a name that holds `content`, as a descriptor to be read from its beginning."""
    descriptor = os.memfd_create("file")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
