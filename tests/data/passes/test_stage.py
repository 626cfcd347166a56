"""Killed anywhere and run again, or with other workers: the same bytes. Nothing half-done looks done."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest

from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.filtering.decontaminate import DecontaminateSettings, decontaminate
from moe_codegen.data.filtering.filters import CleanSettings
from moe_codegen.data.packing.pack import PackSettings, pack
from moe_codegen.data.packing.tokenizer import TokenizerSettings, make_tokenizer
from moe_codegen.data.passes.stage import MANIFEST, WORK, read_manifest, run_stage
from moe_codegen.data.passes.workers import map_units
from moe_codegen.data.pipeline.prepare import prepare, read_plan
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.report.report import write_report
from moe_codegen.data.sampling.sample import SampleSettings, sample
from moe_codegen.errors import ConfigError, OutputError, ResumeError, SourceError, WorkerError
from tests.data.inputs import code, edited, row, tree, write

PLAN = """
[source]
path = "in"
[clean]
[dedup]
[split]
validation = 0.3
"""
UNIT_BYTES = 8000  # many units
COMMAND = """
from moe_codegen.data.pipeline.prepare import prepare, read_plan
prepare(read_plan("plan.toml"), "killed", num_proc=2, unit_bytes={})
"""


@pytest.fixture
def plan(tmp_path):
    rows = [row(seed, repo=f"repo{seed}", content=edited(code(seed % 40), 0.02, seed)) for seed in range(60)]
    rows[5]["content"], rows[6]["content"] = None, "x" * 2000
    write(tmp_path / "in", rows)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path


def test_a_killed_run_goes_on_to_the_same_bytes(plan):
    """The parent alone is killed, in the second verb: its workers have to notice. Resumed with another worker count.

    At other places `test_stopped_at_any_unit` stops, in its own process, and `test_pack` in the steps of packing.
    """
    command = [sys.executable, "-W", "ignore", "-c", COMMAND.format(UNIT_BYTES)]
    process = subprocess.Popen(command, cwd=plan)
    while not (plan / "killed" / "2-dedup" / WORK).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert read_manifest(plan / "killed" / "1-clean") is not None
    assert read_manifest(plan / "killed" / "2-dedup") is None
    for out in ("killed", "whole"):
        prepare(read_plan(plan / "plan.toml"), plan / out, unit_bytes=UNIT_BYTES)
    assert tree(plan / "killed") == tree(plan / "whole")
    assert not list(plan.rglob(WORK))


def test_a_resumed_run_waits_for_what_a_killed_runs_workers_still_write(tmp_path):
    write(tmp_path / "in", [row(n) for n in range(4)])
    (tmp_path / "out" / WORK).mkdir(parents=True)
    with (tmp_path / "out" / WORK / "units").open("w") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_SH)
        resumed = pool.submit(clean, open_source(tmp_path / "in"), tmp_path / "out", CleanSettings())
        with pytest.raises(TimeoutError):
            resumed.result(timeout=0.3)
        assert read_manifest(tmp_path / "out") is None
        held.close()
        assert resumed.result(timeout=60)["rows"] >= 0


class Stop(Exception):
    """What the test raises at a chosen unit."""


def failing_clean(source, out, at, monkeypatch):
    """`clean`, stopped in the middle of its unit number `at`, after part of it has been written."""
    from moe_codegen.data.filtering import clean as module

    real = module.clean_unit

    def stopping(unit, number, folder, *arguments):
        record = real(unit, number, folder, *arguments)
        if number == at:
            raise Stop
        return record

    monkeypatch.setattr(module, "clean_unit", stopping)
    with pytest.raises(Stop):
        clean(source, out)
    monkeypatch.setattr(module, "clean_unit", real)


@pytest.mark.parametrize("at", [0, 2, 5])
def test_stopped_at_any_unit_nothing_looks_finished_and_the_rest_is_done(tmp_path, monkeypatch, at):
    source = open_source(write(tmp_path / "in", [row(seed) for seed in range(60)]), unit_bytes=8000)
    assert len(source.units) == 6
    clean(source, tmp_path / "whole")
    failing_clean(source, tmp_path / "out", at, monkeypatch)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WORK]
    clean(source, tmp_path / "out", num_proc=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_killed_between_the_move_and_the_manifest(tmp_path, monkeypatch):
    source = open_source(write(tmp_path / "in", [row(seed) for seed in range(60)]), unit_bytes=8000)
    clean(source, tmp_path / "whole")
    real, moved = os.replace, []

    def failing(path, target):
        if str(target).endswith(".parquet") and len(moved) == 3:
            raise Stop
        moved.append(target) if str(target).endswith(".parquet") else None
        real(path, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(Stop):
        clean(source, tmp_path / "out")
    monkeypatch.setattr(os, "replace", real)
    assert read_manifest(tmp_path / "out") is None
    clean(source, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_other_settings_or_another_source_are_refused(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", [row(seed) for seed in range(60)])
    source = open_source(folder, unit_bytes=8000)
    failing_clean(source, tmp_path / "out", 2, monkeypatch)
    with pytest.raises(ResumeError, match="differs in max_size"):
        clean(source, tmp_path / "out", CleanSettings(max_size=7))
    with pytest.raises(ResumeError, match="differs in source"):
        clean(open_source(folder, SourceSettings(columns=("repo=path",)), 8000), tmp_path / "out")
    path = folder / "data.parquet"
    os.utime(path, ns=(0, 0))
    with pytest.raises(ResumeError, match="differs in modification times"):
        clean(open_source(folder, unit_bytes=8000), tmp_path / "out")


def test_a_finished_run_is_known_by_what_it_read_wherever_that_lies(tmp_path):
    checkout = tmp_path / "in" / "one"
    checkout.mkdir(parents=True)
    (checkout / "a.py").write_text(code(1))
    (checkout / "LICENSE").write_text("SPDX-License-Identifier: MIT")
    first = clean(open_source(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "in").rename(tmp_path / "moved")
    assert clean(open_source(tmp_path / "moved"), tmp_path / "out") | {"source": "in"} == first
    with pytest.raises(ResumeError, match="differs in source"):
        clean(open_source(tmp_path / "moved", SourceSettings(language="java")), tmp_path / "out")
    path = tmp_path / "moved" / "one" / "a.py"
    path.write_text(path.read_text().replace("load", "LOAD"))
    with pytest.raises(ResumeError, match="differs in modification times"):
        clean(open_source(tmp_path / "moved"), tmp_path / "out")
    path.rename(path.with_name("b.py"))
    with pytest.raises(ResumeError, match="differs in modification times, source"):
        clean(open_source(tmp_path / "moved"), tmp_path / "out")


def test_what_lies_behind_a_setting_is_a_part_of_the_run(tmp_path):
    source = open_source(write(tmp_path / "in", [row(seed) for seed in range(3)]))
    benchmark, settings = tmp_path / "b.jsonl", DecontaminateSettings((str(tmp_path / "b.jsonl"),))
    benchmark.write_text(json.dumps({"prompt": "what is in none of these files, not in one"}))
    assert decontaminate(source, tmp_path / "out", settings)["rows"] == 3
    benchmark.write_text(json.dumps({"prompt": code(1)}))
    with pytest.raises(ResumeError, match="differs in contents of benchmarks"):
        decontaminate(source, tmp_path / "out", settings)
    for folder, seeds in (("a", range(3)), ("b", range(3, 6))):
        of = open_source(write(tmp_path / f"of-{folder}", [row(seed) for seed in seeds]))
        make_tokenizer(of, tmp_path / folder / "tokenizer", TokenizerSettings(vocabulary=300))
    pack(source, tmp_path / "packed", PackSettings(str(tmp_path / "a" / "tokenizer")))
    with pytest.raises(ResumeError, match="differs in contents of tokenizer"):
        pack(source, tmp_path / "packed", PackSettings(str(tmp_path / "b" / "tokenizer")))


@pytest.mark.parametrize("text", ['{"name": "my dataset"}', "[]", "{", "\xff"])
def test_the_manifests_of_others_are_none_of_ours(tmp_path, text):
    folder = write(tmp_path / "in", [row(1)])
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    assert clean(open_source(folder), tmp_path / "out")["history"] == []
    source = open_source(write(tmp_path / "other", [row(2)]))
    with pytest.raises(OutputError, match="is not empty"):
        clean(source, folder)


@pytest.mark.parametrize("inside", [".", "out", "far/below"])
def test_an_output_inside_its_own_source_is_refused_before_any_work(tmp_path, inside):
    folder = write(tmp_path / "in", [row(1)])
    before = list(folder.iterdir())
    with pytest.raises(OutputError, match=r"lies in .* and would be read as part of it; give a folder elsewhere"):
        clean(open_source(folder), folder / inside)
    assert list(folder.iterdir()) == before


@pytest.mark.parametrize(("error", "told"), [(Exception("No space left"), OutputError), (KeyError("x"), KeyError)])
def test_a_full_disk_of_tokenizers_is_told_as_one_and_a_fault_of_ours_as_it_is(tmp_path, error, told):
    source = open_source(write(tmp_path / "in", [row(1)]))
    with pytest.raises(told, match=r"No space left|x"):
        run_stage("clean", source, tmp_path / "out", CleanSettings(), Mock(side_effect=error))


def test_settings_refused_late_take_with_them_only_what_they_began(tmp_path, monkeypatch):
    from moe_codegen.data.sampling import sample as module

    def refuse():
        with pytest.raises(ConfigError, match="no file in java"):
            sample(source, tmp_path / "out", settings)
        return (tmp_path / "out" / WORK).exists()

    def stop(*_):
        raise Stop

    source, settings = open_source(write(tmp_path / "in", [row(1)])), SampleSettings(languages=("java",))
    assert not refuse()
    with monkeypatch.context() as patch:
        patch.setattr(module, "survey_unit", stop)
        with pytest.raises(Stop):
            sample(source, tmp_path / "out", settings)
    assert refuse()


def test_a_file_elsewhere_that_cannot_be_opened_is_not_told_as_of_the_output(tmp_path, monkeypatch):
    def unit(*_):
        (tmp_path / "missing").read_bytes()

    from moe_codegen.data.filtering import clean as module

    monkeypatch.setattr(module, "clean_unit", unit)
    with pytest.raises(SourceError, match="missing cannot be used: No such file"):
        clean(open_source(write(tmp_path / "in", [row(1)])), tmp_path / "out")


def test_a_finished_run_is_not_done_again(tmp_path):
    source = open_source(write(tmp_path / "in", [row(seed) for seed in range(20)]))
    first = clean(source, tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert clean(source, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        path: stamp for path, stamp in stamps.items() if path.is_file()
    }
    with pytest.raises(ResumeError, match="differs in max_lines"):
        clean(source, tmp_path / "out", CleanSettings(max_lines=3))


def test_it_is_said_when_every_file_was_dropped(tmp_path):
    source = open_source(write(tmp_path / "in", [row(seed, licenses=None) for seed in range(3)]))
    with pytest.warns(UserWarning, match=r"clean has kept no file of .*/in; why they went: license unknown$"):
        clean(source, tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    source = open_source(write(tmp_path / "in", [row(0)]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="is not empty"):
        clean(source, tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        clean(source, tmp_path / "file")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_is_full_at_the_start_leaves_nothing_that_a_second_run_stumbles_over(tmp_path):
    import resource

    source = open_source(write(tmp_path / "in", [row(0)]))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            clean(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert clean(source, tmp_path / "out")["rows"] == 1


def test_two_runs_at_once_are_refused(tmp_path):
    import filelock

    source = open_source(write(tmp_path / "in", [row(0)]))
    (tmp_path / "out" / WORK).mkdir(parents=True)
    with filelock.FileLock(tmp_path / "out" / WORK / "lock"), pytest.raises(OutputError, match="another run"):
        clean(source, tmp_path / "out")


def die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_named_as_such():
    with pytest.raises(WorkerError, match="lower --num-proc"):
        map_units(die, [(number,) for number in range(8)], 2, None)


def count_threads_of_the_server(path):
    path.write_text(str(len(os.listdir(f"/proc/{os.getppid()}/task"))))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted through /proc")
def test_workers_are_forked_from_a_process_without_other_threads(tmp_path):
    """A thread that holds a lock while its process forks leaves the lock held in the worker for good."""
    map_units(count_threads_of_the_server, [(tmp_path / str(number),) for number in range(2)], 2, None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1", "1"]


def test_the_folder_that_one_is_in_is_told_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path / "in", [row(1)]))
    assert clean(open_source("."), tmp_path / "out")["source"] == "in"
    assert write_report(".", tmp_path / "report", pictures=False)["source"] == "in"


def test_the_history_of_a_folder_is_told(tmp_path):
    from moe_codegen.data.deduplication.dedup import dedup

    clean(open_source(write(tmp_path / "in", [row(seed) for seed in range(20)])), tmp_path / "clean")
    manifest = dedup(open_source(tmp_path / "clean"), tmp_path / "dedup")
    assert [stage["verb"] for stage in manifest["history"]] == ["clean"]
    assert (tmp_path / "dedup" / MANIFEST).exists()
    (tmp_path / "clean" / MANIFEST).unlink()  # optional on input
    assert dedup(open_source(tmp_path / "clean"), tmp_path / "again")["rows"] == 20
