"""In a real terminal: colours, and nothing wider than the window."""

import os
import pty
import re
import select
import subprocess
import sys

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(columns, *arguments):
    """What the command line writes where its output is a terminal of that width."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", "from moe_codegen.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 0.2)
        if ready:
            try:
                written += os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
        elif process.poll() is not None:
            break
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_mixture_writes_in_the_colours_of_its_experts(moe):
    written = in_terminal(80, "generate", moe, "def add(", "--max-new-tokens", 8, "--show-routing")
    assert "\x1b[2mdef add(" in written
    assert "\x1b[38;5;16;48;5;" in written
    plain = ESCAPES.sub("", written)
    assert "first expert in layer 1" in plain
    assert all(len(line.rsplit("\r", 1)[-1]) <= 80 for line in plain.splitlines())


def test_without_a_standard_output_work_is_done_all_the_same():
    command = "from moe_codegen.cli import main; main()"
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-c", command, "data", "--help"], stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")
