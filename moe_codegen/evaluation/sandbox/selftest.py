"""A sandbox is believed only after programs that try to get out of it have failed."""

import json
import os
import secrets
import socket
import tempfile
import time
from pathlib import Path

from moe_codegen.errors import SandboxError
from moe_codegen.evaluation.sandbox import probe
from moe_codegen.evaluation.sandbox.bubblewrap import Bubblewrap
from moe_codegen.evaluation.sandbox.limits import Limits
from moe_codegen.evaluation.sandbox.process import End, Finished

_LIMITS = Limits(seconds=20, memory_bytes=256 << 20, processes=32, disk_bytes=32 << 20)
_LOOP = "while True: pass"
_FLOOD = "while True: print('x' * 4096)"
_DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
"""
_HOGS = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        hog = bytearray(b"x") * (100 << 20)
        break
time.sleep(60)
"""


def check_sandbox(sandbox: Bubblewrap) -> None:
    """Try to get out of `sandbox`, to outlive it and to use more than it allows.

    Raises:
        SandboxError: it cannot be built on this machine, or it leaks; the message says what, and what to do.
    """
    leaks = escapes(sandbox)
    for name, program, limits, end in (
        ("run for longer than allowed", _LOOP, Limits(0.5), End.TIME),
        ("write more than allowed", _FLOOD, Limits(5, output_bytes=1 << 20), End.OUTPUT),
        ("use more memory in several processes", _HOGS, Limits(5, memory_bytes=512 << 20), End.MEMORY),
    ):
        if _run(sandbox, program, limits).end is not end:
            leaks.append(name)
    if _survivors(sandbox):
        leaks.append("leave a process behind")
    if leaks:
        raise SandboxError(
            f"the sandbox ({sandbox.version()}) leaks: a program in it could {'; '.join(leaks)}. Nothing was run; "
            "use another machine or a container, or --sandbox none where nothing is to lose"
        )


def escapes(sandbox: Bubblewrap) -> list[str]:
    """What the probe managed to do in `sandbox`; nothing, if it is one."""
    name = f"moe-codegen-{secrets.token_hex(8)}"
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        secret = Path(folder) / "secret"
        secret.write_text(name)
        secret.chmod(0o644)
        Path(folder).chmod(0o755)  # only the sandbox stands in the way
        outside = {
            "secret": str(secret),
            "home": str(Path.home()),
            "port": server.getsockname()[1],
            "abstract": name,
            "pid": os.getpid(),
            "is_root": os.geteuid() == 0,
            "disk_bytes": _LIMITS.disk_bytes,
            "memory_bytes": _LIMITS.memory_bytes,
            "processes": _LIMITS.processes,
        }
        finished = _run(sandbox, Path(probe.__file__).read_text(), _LIMITS, json.dumps(outside))
    try:
        return list(json.loads(finished.stdout))
    except ValueError:
        raise SandboxError(f"the sandbox's self-test ended early ({finished.end}): {finished.stderr_tail!r}") from None


def _run(sandbox: Bubblewrap, program: str, limits: Limits, *arguments: str) -> Finished:
    finished = sandbox.run(["python3", "probe.py", *arguments], {"probe.py": program.encode()}, limits)
    if finished.end is not End.BROKEN and finished.exit_code != 127:
        return finished
    message = finished.stderr.decode(errors="replace").strip()
    if "prlimit" in message:
        raise SandboxError("the sandbox's self-test needs python3 in /usr/bin: install the Debian package python3")
    raise SandboxError(
        f"bubblewrap cannot build a sandbox here: {message}. It needs user namespaces: set "
        "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 and "
        "user.max_user_namespaces above 0 with sysctl, where they exist; start a container with --security-opt "
        "seccomp=unconfined --security-opt systempaths=unconfined. Or say --sandbox none, where nothing is to lose"
    )


def _survivors(sandbox: Bubblewrap) -> bool:
    """Whether a process that a program left behind is still there when the program has ended."""
    mark = f"sandbox-{secrets.token_hex(8)}"
    _run(sandbox, _DAEMON, Limits(5), mark)
    time.sleep(0.05)  # the kernel ends a namespace's processes after its first one
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark in (process / "cmdline").read_text():
                return True
        except OSError:
            continue
    return False
