"""Runs inside the sandbox and tries to get out; prints one line of JSON: what it managed to do, [] if nothing.

It knows nothing but what it is given as its one argument: what there is to be found outside.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Try everything, the attempts that use up the sandbox last."""
    outside = json.loads(sys.argv[1])
    attempts: dict[str, Callable[[], Any]] = {
        "read the harness's files": lambda: os.close(os.open(outside["secret"], os.O_RDONLY)),
        "write to the harness's folder": lambda: _write(os.path.dirname(outside["secret"])),
        "see home": lambda: os.listdir(outside["home"]),
        "write to home": lambda: _write(outside["home"]),
        "write to /": lambda: _write("/"),
        "write to /usr": lambda: _write("/usr"),
        "write to /etc": lambda: _write("/etc"),
        "write to /dev": lambda: _write("/dev"),
        "change a kernel setting": lambda: os.close(os.open("/proc/sys/kernel/hostname", os.O_WRONLY)),
        "connect to a port of this machine": lambda: socket.create_connection(("127.0.0.1", outside["port"]), 1),
        "connect to an abstract socket": lambda: _connect(outside["abstract"]),
        "have a network interface": lambda: _expect([name for _, name in socket.if_nameindex() if name != "lo"]),
        "see another process": lambda: _expect(len([name for name in os.listdir("/proc") if name.isdigit()]) > 3),
        "signal the harness": lambda: os.kill(outside["pid"], 0),
        "signal every process": _signal_all,
        "become root": lambda: os.setuid(0),
        "be of a user or group of the harness": lambda: _expect(
            outside["is_root"] and {*os.getresuid(), *os.getresgid(), *os.getgroups()} & {0}
        ),
        "hold a capability": lambda: _expect(int(_own_status("CapPrm"), 16) or int(_own_status("CapBnd"), 16)),
        "gain privileges by a set-user-id program": lambda: _expect(_own_status("NoNewPrivs") != "1"),
        "make a user namespace": _unshare,
        "inherit an open file": lambda: _expect([fd for fd in os.listdir("/proc/self/fd") if _is_open(int(fd))]),
        "fill the disk": lambda: _fill(outside["disk_bytes"]),
        "allocate more memory than allowed": lambda: len(bytearray(outside["memory_bytes"])),
        "start more processes than allowed": lambda: _fork(outside["processes"]),
    }
    print(json.dumps([name for name, attempt in attempts.items() if _succeeds(attempt)]))


def _succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, MemoryError, AssertionError):
        return False
    return True


def _expect(found: Any) -> None:
    assert found


def _write(folder: str) -> None:
    with open(os.path.join(folder, "leak"), "w"):
        pass


def _connect(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + name)


def _signal_all() -> None:
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    os.kill(-1, signal.SIGURG)
    os.kill(1, signal.SIGKILL)  # the first process of the namespace: nothing happens to it
    raise AssertionError


def _own_status(field: str) -> str:
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith(field + ":"))


def _unshare() -> None:
    if ctypes.CDLL(None).unshare(0x10000000) != 0:  # CLONE_NEWUSER
        raise OSError


def _is_open(fd: int) -> bool:
    try:
        return fd > 2 and "/proc/" not in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False


def _fill(limit: int) -> None:
    written, chunk = 0, b"x" * (1 << 20)
    try:
        for number in range(2 * limit // (8 << 20) + 1):
            with open(f"fill{number}", "wb", buffering=0) as file:
                for _ in range(8):
                    written += file.write(chunk)
        assert written > limit
    finally:
        for name in os.listdir("."):
            if name.startswith("fill"):
                os.unlink(name)


def _fork(limit: int) -> None:
    children = []
    try:
        for _ in range(limit + 1):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
