"""From a source text to what is run: a command for each program, headers compiled once, or a compiler that stays."""

import os
import select
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from moe_codegen.errors import InfrastructureError, ToolchainError
from moe_codegen.evaluation.languages import Language
from moe_codegen.evaluation.languages.language import Compilation
from moe_codegen.evaluation.sandbox import End, Finished, Limits, Sandbox

_MEMORY, _DISK, _ARTIFACT = 2 << 30, 512 << 20, 512 << 20  # bytes
_HEADERS = "moe-codegen-headers-"
_KEEP_ARTIFACT = ("sh", "-c", 'out=$1; shift; "$@" >&2 && cat "$out"', "sh")


@dataclass(frozen=True)
class Built:
    """What a compiler made of a program.

    Attributes:
        artifact: what is run; None where the compiler failed.
        end, exit_code, said: how the compiler ended, and what it wrote.
        seconds: it took.
    """

    artifact: bytes | None
    end: End
    exit_code: int
    said: bytes
    seconds: float


class Compiler(Protocol):
    """Makes what is run."""

    def compile(self, source: str, worker: int) -> Built:
        """Compile one program."""
        ...

    def close(self) -> None:
        """Let go of everything it keeps."""
        ...


def open_compiler(language: Language, sandbox: Sandbox) -> Compiler | None:
    """The compiler of `language`; None where its source is what is run."""
    if language.compilation is None:
        return None
    if language.compilation.server == "javac":
        return JavaCompiler(language.compilation, sandbox)
    return CommandCompiler(language, language.compilation, sandbox)


class CommandCompiler:
    """One run of a command for each program, with the headers that most programs begin with compiled before.

    A program that does not begin with exactly those headers is compiled without them.
    """

    def __init__(self, language: Language, compilation: Compilation, sandbox: Sandbox) -> None:
        self._source, self._compilation, self._sandbox = language.source, compilation, sandbox
        _remove_leftovers()
        self._folder = tempfile.TemporaryDirectory(prefix=f"{_HEADERS}{os.getpid()}-")
        self._headers: Path | None = None
        if compilation.precompiled is not None:
            self._headers = Path(self._folder.name)
            self._headers.chmod(0o755)  # the sandbox's user is another
            self._precompile(compilation.precompiled)

    def compile(self, source: str, worker: int) -> Built:
        """Compile one program."""
        command, shown = self._compilation.command, {}
        if self._headers and source.startswith(self._compilation.precompiled or ""):
            command, shown = (*command, "-include", "headers/prelude.h"), {"headers": self._headers}
        limits = Limits(self._compilation.seconds, _MEMORY, disk_bytes=_DISK, output_bytes=_ARTIFACT)
        files = {self._source: source.encode(errors="replace")}
        finished = _build(self._sandbox, command, self._compilation.artifact, files, limits, worker, shown)
        return _built(finished)

    def close(self) -> None:
        """Remove the compiled headers."""
        self._folder.cleanup()

    def _precompile(self, header: str) -> None:
        assert self._headers is not None
        command = (*self._flags(), "-x", "c++-header", "prelude.h", "-o", "prelude.h.gch")
        limits = Limits(120, _MEMORY, disk_bytes=_DISK, output_bytes=_ARTIFACT)
        files = {"prelude.h": header.encode()}
        finished = _build(self._sandbox, command, "prelude.h.gch", files, limits, 0, {})
        if finished.end is not End.EXIT or finished.exit_code != 0:
            raise ToolchainError(f"`{' '.join(command)}` failed: {finished.stderr_tail.decode(errors='replace')}")
        (self._headers / "prelude.h").write_text(header)
        (self._headers / "prelude.h.gch").write_bytes(finished.stdout)

    def _flags(self) -> list[str]:
        """The command without source and target: a compiled header must be made with the same flags."""
        own = {self._source, "-o", self._compilation.artifact}
        return [part for part in self._compilation.command if part not in own]


class JavaCompiler:
    """One javac for each worker that stays in its virtual machine, in a sandbox of its own.

    It only compiles, and keeps nothing of a program; where one hangs or dies, the next program gets a new one.
    """

    def __init__(self, compilation: Compilation, sandbox: Sandbox) -> None:
        self._compilation, self._sandbox = compilation, sandbox
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        source = (resources.files(__package__) / "CompileServer.java").read_bytes()
        command = ("sh", "-c", "javac -d classes CompileServer.java && jar cf server.jar -C classes .")
        limits = Limits(120, _MEMORY, disk_bytes=_DISK, output_bytes=_ARTIFACT)
        finished = _build(sandbox, command, "server.jar", {"CompileServer.java": source}, limits, 0, {})
        if finished.end is not End.EXIT or finished.exit_code != 0:
            raise ToolchainError(f"javac cannot compile: {finished.stderr_tail.decode(errors='replace')}")
        self._jar = finished.stdout

    def compile(self, source: str, worker: int) -> Built:
        """Compile one program."""
        start, again = time.monotonic(), worker in self._servers
        server = self._servers.get(worker) or self._start(worker)
        try:
            status, answer = _ask(server, source.encode(errors="replace"), start + self._compilation.seconds)
        except TimeoutError:
            self._stop(worker)
            return Built(None, End.TIME, -1, b"", time.monotonic() - start)
        except (EOFError, BrokenPipeError) as error:
            self._stop(worker)
            if again:  # the program before may be to blame
                return self.compile(source, worker)
            raise InfrastructureError(f"javac died while it compiled a program: {error}") from error
        seconds = time.monotonic() - start
        if status == 0:
            return Built(answer, End.EXIT, 0, b"", seconds)
        return Built(None, End.EXIT, 1, answer, seconds)

    def close(self) -> None:
        """End every javac."""
        for worker in list(self._servers):
            self._stop(worker)

    def _start(self, worker: int) -> subprocess.Popen[bytes]:
        options = self._compilation.command[1:-1]  # javac's own, without its name and the source's
        machine = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx1g", "-cp", "server.jar")
        limits = Limits(10**6, _MEMORY, disk_bytes=_DISK)  # no clock of its own: each program brings one
        command = (*machine, "CompileServer", *options)
        self._servers[worker] = self._sandbox.start(command, {"server.jar": self._jar}, limits, worker=worker)
        return self._servers[worker]

    def _stop(self, worker: int) -> None:
        server = self._servers.pop(worker)
        server.kill()
        server.wait()
        for pipe in (server.stdin, server.stdout, server.stderr):
            if pipe is not None:
                pipe.close()


def _remove_leftovers() -> None:
    """Remove compiled headers, 130 MB each, of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_HEADERS}*"):
        process = folder.name.removeprefix(_HEADERS).partition("-")[0]
        is_ours = folder.lstat().st_uid == os.geteuid() and not folder.is_symlink()
        if is_ours and not Path("/proc", process).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _build(
    sandbox: Sandbox,
    command: tuple[str, ...],
    artifact: str,
    files: Mapping[str, bytes],
    limits: Limits,
    worker: int,
    shown: Mapping[str, Path],
) -> Finished:
    """Run a compiler; its artifact comes on standard output, and what it says on standard error."""
    return sandbox.run(
        (*_KEEP_ARTIFACT, artifact, *command), files, limits, worker=worker, shown=shown, keep_bytes=_ARTIFACT
    )


def _built(finished: Finished) -> Built:
    if finished.end is End.BROKEN:
        raise InfrastructureError(f"a compiler did not start: {finished.stderr.decode(errors='replace')}")
    good = finished.end is End.EXIT and finished.exit_code == 0
    exit_code = -1 if finished.exit_code is None else finished.exit_code
    return Built(finished.stdout if good else None, finished.end, exit_code, finished.stderr, finished.seconds)


def _ask(server: subprocess.Popen[bytes], source: bytes, deadline: float) -> tuple[int, bytes]:
    """Send a source and read the answer: its first byte and the rest."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(struct.pack(">i", len(source)) + source)
    server.stdin.flush()
    status, length = struct.unpack(">bi", _read(server.stdout.fileno(), 5, deadline))
    return status, _read(server.stdout.fileno(), length, deadline)


def _read(descriptor: int, length: int, deadline: float) -> bytes:
    """Exactly `length` bytes. Raises TimeoutError or EOFError."""
    parts: list[bytes] = []
    while length:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        chunk = os.read(descriptor, min(length, 1 << 20))
        if not chunk:
            raise EOFError("it closed its output")
        parts.append(chunk)
        length -= len(chunk)
    return b"".join(parts)
