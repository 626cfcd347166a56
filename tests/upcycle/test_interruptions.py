"""Killed, interrupted or out of space, a conversion goes on to the same bytes; until then nothing passes for whole."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from moe_codegen import MoEForCausalLM, upcycle
from moe_codegen.errors import OutputError, ResumeError
from tests.upcycle.checkpoints import Steps, copy_of, dense, hashes_of, tuned

OPTIONS = {"num_experts": 4, "max_shard_size": "20KB", "workers": 2, "noise_std": 0.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run makes."""
    out = tmp_path_factory.mktemp("whole") / "moe"
    upcycle(dense("phi"), out, **OPTIONS)
    return out


class Zygote:
    """Conversions in processes of their own that can be killed."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.upcycle.zygote"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes)

    def start(self, source, out):
        task = {"source": str(source), "out": str(out), "options": OPTIONS}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait_for(self, step):
        """Until the conversion begins `step`; its first word."""
        assert self.process.stdout.readline().startswith(step)

    def status(self):
        while not (line := self.process.stdout.readline()).startswith("status"):
            pass
        return os.waitstatus_to_exitcode(int(line.split()[1]))


@pytest.fixture(scope="module")
def zygote():
    made = Zygote()
    yield made
    made.process.stdin.close()
    made.process.wait(30)


def does_not_load(folder):
    with pytest.raises((OSError, ValueError)):  # transformers' own, for want of a config.json
        MoEForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(number, status, zygote, whole, tmp_path):
    out = tmp_path / "moe"
    generator = random.Random(number)
    killed_while_writing = 0
    for attempt in range(8):
        pid = zygote.start(dense("phi"), out)
        zygote.wait_for("reading")
        if attempt % 4:
            zygote.wait_for("writing")
        time.sleep(generator.uniform(0, 0.1))
        with suppress(ProcessLookupError):  # it was done before
            os.kill(pid, number)
        if zygote.status() == 0 or out.exists():  # killed when it was whole
            break
        partial = tmp_path / "moe.partial"
        if partial.exists() and not (partial / "config.json").exists():
            killed_while_writing += 1
            does_not_load(partial)
            if number == signal.SIGINT:
                assert not list(partial.glob("*.part"))  # what was given up was cleared away
    assert killed_while_writing
    if not out.exists():
        upcycle(dense("phi"), out, **OPTIONS)
    # Killed right after it got its name, it may still hold its journal.
    assert {f: h for f, h in hashes_of(out).items() if f not in ("journal.json", ".lock")} == hashes_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


def test_an_interrupt_is_heeded_at_once_and_not_after_all_files(zygote, tmp_path):
    pid = zygote.start(dense("phi"), tmp_path / "moe")
    zygote.wait_for("reading")
    zygote.wait_for("writing")
    os.kill(pid, signal.SIGINT)
    assert zygote.status() == 130
    assert len(list((tmp_path / "moe.partial").glob("*.safetensors"))) < 6


def interrupted(source, out, after=60_000, **options):
    """A conversion given up when `after` bytes are written."""

    def interrupt(step):
        if step == "writing the mixture" and steps.advanced[-1] > after:
            raise KeyboardInterrupt

    steps = Steps(interrupt)
    with pytest.raises(KeyboardInterrupt):
        upcycle(source, out, **{**OPTIONS, "workers": 1, **options}, progress=steps)
    assert json.loads((out.parent / f"{out.name}.partial" / "journal.json").read_text())["done"]


def test_what_is_complete_is_not_written_again_but_counted_as_done(whole, tmp_path):
    interrupted(dense("phi"), tmp_path / "moe")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "moe.partial").glob("*.safetensors")}
    steps = Steps()
    upcycle(dense("phi"), tmp_path / "moe", **OPTIONS, progress=steps)
    _, total, done = steps.begun[-1]
    assert 0 < done < total == done + steps.advanced[-1]
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "moe").iterdir()}.items()
    assert hashes_of(tmp_path / "moe") == hashes_of(whole)


def test_a_source_that_changed_since_is_not_mixed_with_what_it_was(tmp_path):
    source = copy_of(dense("phi"), tmp_path / "source")
    interrupted(source, tmp_path / "moe")
    os.utime(source / "model.safetensors")
    before = hashes_of(tmp_path / "moe.partial")
    with pytest.raises(ResumeError, match=r"started with another sources .*delete that folder to start anew"):
        upcycle(source, tmp_path / "moe", **OPTIONS)
    assert hashes_of(tmp_path / "moe.partial") == before


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"num_experts": 3}, {"max_shard_size": "30KB"}, {"noise_std": 0.2}, {"dtype": "bfloat16"}]
)
def test_other_settings_are_not_mixed_with_those_it_started_with(changed, tmp_path):
    interrupted(dense("phi"), tmp_path / "moe")
    (option,) = changed
    with pytest.raises(ResumeError, match=rf"started with another {option} \({option} was .*run it again as it was"):
        upcycle(dense("phi"), tmp_path / "moe", **{**OPTIONS, **changed})


def test_another_number_of_workers_may_go_on(whole, tmp_path):
    interrupted(dense("phi"), tmp_path / "moe")
    upcycle(dense("phi"), tmp_path / "moe", **{**OPTIONS, "workers": 3})
    assert hashes_of(tmp_path / "moe") == hashes_of(whole)


def test_experts_in_another_order_are_another_mixture(tmp_path):
    experts = {name: tuned(dense("phi"), tmp_path / name, seed) for seed, name in enumerate("ab")}
    options = {"experts": experts, "num_experts": 2}
    interrupted(dense("phi"), tmp_path / "moe", **options)
    with pytest.raises(ResumeError, match="another sources"):
        upcycle(dense("phi"), tmp_path / "moe", **{**OPTIONS, **options, "experts": dict(reversed(experts.items()))})


def test_a_file_that_vanished_from_a_started_conversion_is_written_again(whole, tmp_path):
    interrupted(dense("phi"), tmp_path / "moe")
    sorted((tmp_path / "moe.partial").glob("*.safetensors"))[0].unlink()
    upcycle(dense("phi"), tmp_path / "moe", **OPTIONS)
    assert hashes_of(tmp_path / "moe") == hashes_of(whole)


def test_no_space_in_the_middle_is_explained_and_goes_on_when_there_is_some(whole, tmp_path):
    def refuse(step):
        if step == "writing the mixture" and steps.advanced[-1] > 60_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    steps = Steps(refuse)
    with pytest.raises(OutputError, match=r"no space left for .*moe.*run the same command again"):
        upcycle(dense("phi"), tmp_path / "moe", **OPTIONS, progress=steps)
    assert not (tmp_path / "moe").exists()
    assert not list((tmp_path / "moe.partial").glob("*.part"))
    upcycle(dense("phi"), tmp_path / "moe", **OPTIONS)
    assert hashes_of(tmp_path / "moe") == hashes_of(whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, where this machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_really_is_full(whole, small_disk, monkeypatch):
    with pytest.raises(OutputError, match=r"its disk has 0\.00 GB free"):
        upcycle(dense("phi"), small_disk / "moe", **OPTIONS)
    assert not list(small_disk.iterdir())
    with monkeypatch.context() as patch:  # as when another program fills it meanwhile
        patch.setattr("moe_codegen.checkpoint.staging.free_bytes", lambda path: 10**9)
        with pytest.raises(OutputError, match="no space left for"):
            upcycle(dense("phi"), small_disk / "moe", **OPTIONS)
    assert list((small_disk / "moe.partial").glob("*.safetensors"))
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    upcycle(dense("phi"), small_disk / "moe", **OPTIONS)
    assert hashes_of(small_disk / "moe") == hashes_of(whole)


def test_a_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OutputError, match=r"cannot be created.*a folder you may write to"):
        upcycle(dense("phi"), small_disk / "moe", **OPTIONS)
