"""`--sandbox none`: programs with the caller's own rights, in a folder that is removed; their appetite is bounded."""

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_codegen.evaluation.sandbox.limits import Limits
from moe_codegen.evaluation.sandbox.process import HEAD_BYTES, Finished, kill_group, supervise

WARNING = (
    "programs that a model wrote run WITHOUT a sandbox: they can read and delete your files, use the network and "
    "outlive this run; do this only on a machine that has nothing to lose"
)
# Runs what follows, then removes the folder it ran in; when this process is killed, its end of the pipe closes too.
THEN_REMOVE = ("sh", "-c", 'folder=$PWD; "$@"; cd /; rm -rf "$folder"', "sh")


class Unconfined:
    """Starts programs as the caller would, with time, output and memory bounded."""

    name = "none"
    path = os.environ.get("PATH", os.defpath)

    def version(self) -> str:
        """What a record says of it."""
        return self.name

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
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = _popen(command, files, limits, Path(folder), shown or {}, subprocess.DEVNULL)
            return supervise(process, limits, marker=marker, keep_bytes=keep_bytes, kill=kill_group)

    def start(
        self, command: Sequence[str], files: Mapping[str, bytes], limits: Limits, *, worker: int = 0
    ) -> subprocess.Popen[bytes]:
        """Start `command` with pipes to talk to it; its files stay until it or this process ends."""
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return _popen((*THEN_REMOVE, *command), files, limits, Path(folder), {}, subprocess.PIPE)


def _popen(
    command: Sequence[str],
    files: Mapping[str, bytes],
    limits: Limits,
    folder: Path,
    shown: Mapping[str, Path],
    stdin: int,
) -> subprocess.Popen[bytes]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    for name, path in shown.items():
        (folder / name).symlink_to(path)
    return subprocess.Popen(
        [*limits.prlimit(), *command],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
    )
