"""The sandbox holds, and its self-test notices each way in which it might not."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from moe_codegen.errors import SandboxError
from moe_codegen.evaluation.sandbox import End, Limits, bubblewrap, open_sandbox
from moe_codegen.evaluation.sandbox.bubblewrap import Bubblewrap
from moe_codegen.evaluation.sandbox.selftest import check_sandbox, escapes
from moe_codegen.evaluation.sandbox.unconfined import Unconfined
from tests.evaluation.programs import needs

pytestmark = needs("py")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes to another user")


def python(sandbox, program, limits=None, **options):
    return sandbox.run(["python3", "program.py"], {"program.py": program.encode()}, limits or Limits(10), **options)


def weakened(without=(), become=None):
    """A sandbox that lacks some of its arguments, or the change of user."""
    sandbox = Bubblewrap()
    common = list(sandbox._common)
    for part in without:
        common.remove(part)
    sandbox._common = common
    if become is not None:
        sandbox._become = become
    return sandbox


def test_nothing_escapes(sandbox):
    assert escapes(sandbox) == []


def test_without_a_sandbox_nearly_everything_is_possible():
    possible = escapes(Unconfined())
    assert {"read the harness's files", "write to home", "connect to a port of this machine"} <= set(possible)
    assert {"signal the harness", "fill the disk", "see another process"} <= set(possible)


@pytest.mark.parametrize(
    ("without", "leak"),
    [
        (["--disable-userns"], "make a user namespace"),
        (["--remount-ro", "/dev"], "write to /dev"),
    ],
    ids=["namespaces", "devices"],
)
def test_a_missing_argument_is_noticed(without, leak):
    assert leak in escapes(weakened(without))


@root_only
def test_a_missing_change_of_user_is_noticed():
    possible = escapes(weakened(become=lambda worker: []))
    assert {"change a kernel setting", "start more processes than allowed"} <= set(possible)


def test_a_shared_network_is_noticed_and_nothing_runs(monkeypatch):
    init = Bubblewrap.__init__

    def with_network(self):
        init(self)
        self._common.append("--share-net")

    monkeypatch.setattr(Bubblewrap, "__init__", with_network)
    with pytest.raises(SandboxError, match=r"leaks: a program in it could connect to a port of this machine"):
        open_sandbox("bubblewrap")


def test_bounds_that_do_not_hold_are_noticed(sandbox, monkeypatch):
    def patient(self, command, files, limits, **options):
        finished = run(self, command, files, limits, **options)
        return finished if limits.seconds > 10 else type(finished)(**{**vars(finished), "end": End.EXIT})

    run = Bubblewrap.run
    monkeypatch.setattr(Bubblewrap, "run", patient)
    with pytest.raises(SandboxError, match="run for longer than allowed; write more than allowed; use more memory"):
        check_sandbox(sandbox)


@pytest.mark.parametrize(("program", "package"), [("bwrap", "bubblewrap"), ("setpriv", "util-linux")])
def test_a_missing_program_is_named_with_its_package(program, package, monkeypatch):
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None if name == program else f"/usr/bin/{name}")
    with pytest.raises(SandboxError, match=f"needs {program}: install the Debian package {package}"):
        open_sandbox("bubblewrap")


def test_forbidden_namespaces_are_explained(monkeypatch):
    init = Bubblewrap.__init__

    def without_namespaces(self):
        init(self)
        self._common.append("--no-such-argument")

    monkeypatch.setattr(Bubblewrap, "__init__", without_namespaces)
    with pytest.raises(SandboxError, match=r"kernel\.unprivileged_userns_clone=1"):
        open_sandbox("bubblewrap")


def test_an_unknown_sandbox_is_refused():
    with pytest.raises(SandboxError, match="expected bubblewrap, or none"):
        open_sandbox("docker")


@pytest.mark.parametrize("make", [lambda: open_sandbox("none"), Bubblewrap], ids=["none", "bubblewrap"])
def test_a_process_ends_as_it_should(make):
    some = make()
    assert python(some, "print(1)").stdout == b"1\n"
    assert python(some, "import sys; sys.exit(3)").exit_code == 3
    assert python(some, "import os; os.abort()").exit_code == -6
    assert python(some, "while True: pass", Limits(0.5)).end is End.TIME
    flood = python(some, "while True: print('x' * 999)", Limits(10, output_bytes=1 << 20))
    assert (flood.end, flood.exit_code, len(flood.stdout)) == (End.OUTPUT, None, 8192)
    assert python(some, "len(bytearray(1 << 30))", Limits(10, memory_bytes=256 << 20)).exit_code == 1


def test_a_marker_is_found_wherever_it_comes_and_is_not_shown(sandbox):
    program = "print('x' * 100_000); print('MARK'); print('y' * 100_000)"
    finished = python(sandbox, program, marker=b"MARK")
    assert finished.marked
    assert b"MARK" not in python(sandbox, "print('a'); print('MARK')", marker=b"MARK").stdout
    assert not python(sandbox, "print('MAR')", marker=b"MARK").marked


def test_the_end_of_a_long_error_is_kept(sandbox):
    finished = python(sandbox, "import sys; sys.stderr.write('x' * 100_000); raise ValueError('the end')")
    assert finished.stderr_tail.endswith(b"ValueError: the end\n")


def test_files_are_shown_and_cannot_be_written(sandbox, tmp_path):
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "file").write_text("here")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    assert python(sandbox, "print(open('shown/file').read())", shown={"shown": shown}).stdout == b"here\n"
    assert b"Read-only" in python(sandbox, "open('shown/file', 'w')", shown={"shown": shown}).stderr


def test_when_the_harness_is_killed_its_programs_are_too(sandbox):
    mark = f"harness-{os.getpid()}"
    harness = os.fork()
    if harness == 0:
        sandbox.run(["sh", "-c", "sleep 60; true", mark], {}, Limits(60))
        os._exit(0)
    deadline = time.monotonic() + 30
    while not running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    was_running = running(mark)
    os.kill(harness, signal.SIGKILL)
    os.waitpid(harness, 0)
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert was_running
    assert not running(mark)


def test_without_a_sandbox_the_folder_of_a_server_goes_with_a_killed_harness(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    harness = os.fork()
    if harness == 0:
        Unconfined().start(["cat"], {"file": b"here"}, Limits(60))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(harness, 0)
    deadline = time.monotonic() + 30
    while any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(tmp_path.iterdir())


def running(mark):
    """Whether the shell that was started with `mark` as its name is there."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if process.read_bytes().startswith(b"sh\0-c\0sleep 60; true\0" + mark.encode()):
                return True
        except OSError:
            continue
    return False
