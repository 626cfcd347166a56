"""One process from start to end, with its output, time and memory bounded."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from moe_codegen.evaluation.sandbox.limits import Limits
from moe_codegen.evaluation.sandbox.usage import shared_memory, usage_of

HEAD_BYTES, TAIL_BYTES = 8192, 8192  # kept of each stream
_CHUNK = 1 << 16
_WATCH_SECONDS = 0.1


class End(StrEnum):
    """Why a process is no longer there."""

    EXIT = "exit"
    TIME = "time"
    MEMORY = "memory"
    OUTPUT = "output"
    BROKEN = "broken"  # it never started: what failed is the sandbox


@dataclass(frozen=True)
class Finished:
    """A process that ended.

    Attributes:
        exit_code: negative for a signal; None where it was stopped.
        stdout: all of it if it was to be kept, else its first `HEAD_BYTES`, without the marker.
        stderr, stderr_tail: its first and last bytes.
        marked: whether the marker came on standard output.
        seconds, cpu_seconds: wall-clock time, and processor time as last seen while it ran.
    """

    end: End
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    stderr_tail: bytes
    marked: bool
    seconds: float
    cpu_seconds: float


class Stream:
    """Keeps the beginning and the end of what it is fed, and notices a marker wherever it comes."""

    def __init__(self, keep: int, marker: bytes = b"") -> None:
        self.head, self.tail, self.total, self.marked = bytearray(), b"", 0, False
        self._keep, self._marker = keep, marker

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.total += len(chunk)
        self.head += chunk[: max(0, self._keep - len(self.head))]
        if self._marker and not self.marked:
            self.marked = self._marker in self.tail[-len(self._marker) :] + chunk
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]

    def text(self) -> bytes:
        """The beginning, without the marker."""
        return bytes(self.head).replace(self._marker, b"") if self._marker else bytes(self.head)


def supervise(
    process: subprocess.Popen[bytes],
    limits: Limits,
    *,
    marker: bytes = b"",
    keep_bytes: int = HEAD_BYTES,
    kill: Callable[[subprocess.Popen[bytes]], None] = lambda process: process.kill(),
) -> Finished:
    """Read what `process` writes until it ends or has used up what `limits` gives it.

    Args:
        process: started with pipes as its standard output and error.
        marker: what to look for on standard output; empty: nothing.
        keep_bytes: of standard output.
        kill: ends it and everything it started.
    """
    start, out, err = time.monotonic(), Stream(keep_bytes, marker), Stream(HEAD_BYTES)
    deadline, watch, cpu, end = start + limits.seconds, start + _WATCH_SECONDS, 0.0, End.EXIT
    assert process.stdout is not None
    assert process.stderr is not None
    exited = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        selector.register(exited, selectors.EVENT_READ, None)
        while end is End.EXIT:
            now = time.monotonic()
            if now >= deadline:
                end = End.TIME
            elif out.total + err.total > limits.output_bytes:
                end = End.OUTPUT
            elif now >= watch:
                watch, usage = now + _WATCH_SECONDS, usage_of(process.pid)
                cpu = max(cpu, usage.cpu_seconds)
                if usage.memory_bytes > limits.memory_bytes and shared_memory(process.pid) > limits.memory_bytes:
                    end = End.MEMORY
            for key, _ in selector.select(max(0.0, min(watch, deadline) - now)):
                if key.data is None:
                    selector.unregister(exited)
                    continue
                chunk = os.read(key.fd, _CHUNK)
                key.data.feed(chunk)
                if not chunk:
                    selector.unregister(key.fd)
            if exited not in selector.get_map() and not _more(selector):
                break
    os.close(exited)
    if end is End.TIME:
        cpu = max(cpu, usage_of(process.pid).cpu_seconds)
    kill(process)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    exit_code = process.returncode if end is End.EXIT else None
    seconds = time.monotonic() - start
    return Finished(end, exit_code, out.text(), err.text(), err.tail, out.marked, seconds, cpu)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End `process`, which leads a session of its own, and all that stayed in its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _more(selector: selectors.BaseSelector) -> bool:
    """Whether a stream has something to be read right now; its end counts, as it takes one more read."""
    return any(key.data is not None for key, _ in selector.select(0))
