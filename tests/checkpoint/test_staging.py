"""A folder appears whole or not at all; what is in the way is named; what was complete is not done again."""

import errno
import json
import os
import shutil
from collections import namedtuple

import pytest

from moe_codegen.checkpoint import StagedFolder, free_bytes, resolve_target
from moe_codegen.errors import OutputError, ResumeError

FINGERPRINT = {"options": {"seed": 0}, "source": [1, 2]}


def interrupted(out, fingerprint=FINGERPRINT, files=("a",)):
    """Begin `out`, complete `files` and stop."""
    with StagedFolder(out, fingerprint) as staged:
        for file in files:
            (staged.path / file).write_text(file)
            staged.record(file, f"hash of {file}")
    return staged


def test_nothing_is_touched_before_it_is_entered(tmp_path):
    StagedFolder(tmp_path / "deep" / "out", FINGERPRINT).check_space(1)
    assert not list(tmp_path.iterdir())


def test_it_is_there_whole_only_after_finish(tmp_path):
    out = tmp_path / "deep" / "out"
    with StagedFolder(out, FINGERPRINT) as staged:
        (staged.path / "a").write_text("a")
        staged.record("a", "1")
        assert not out.exists()
        staged.finish()
    assert [file.name for file in out.iterdir()] == ["a"]
    assert [file.name for file in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_may_be_there_already(tmp_path):
    (tmp_path / "out").mkdir()
    with StagedFolder(tmp_path / "out", FINGERPRINT) as staged:
        staged.finish()
    assert (tmp_path / "out").is_dir()


def test_a_second_run_knows_what_is_complete(tmp_path):
    interrupted(tmp_path / "out", files=("a", "bb"))
    with StagedFolder(tmp_path / "out", FINGERPRINT) as staged:
        assert staged.done == {
            "a": {"bytes": 1, "sha256": "hash of a"},
            "bb": {"bytes": 2, "sha256": "hash of bb"},
        }


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("longer")])
def test_a_file_that_is_gone_or_has_another_size_is_not_complete(damage, tmp_path):
    staged = interrupted(tmp_path / "out", files=("a", "bb"))
    damage(staged.path / "a")
    assert set(StagedFolder(tmp_path / "out", FINGERPRINT).done) == {"bb"}


def test_what_changed_since_is_named_with_both_values(tmp_path):
    interrupted(tmp_path / "out")
    message = (
        r"started with another options \(options was \{\"seed\": 0\}, is \{\"seed\": 1\}\); run it again as it was"
    )
    with pytest.raises(ResumeError, match=message):
        StagedFolder(tmp_path / "out", {**FINGERPRINT, "options": {"seed": 1}})


def test_a_folder_of_somebody_else_is_not_written_into(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("!")
    with pytest.raises(OutputError, match=r"out\.partial is in the way .*remove it"):
        StagedFolder(tmp_path / "out", FINGERPRINT)


@pytest.mark.parametrize("journal", ["", "[]", "{}", '{"fingerprint": 5, "done": {}}', '{"fingerprint": {}}'])
def test_a_journal_of_something_else_is_named(journal, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "journal.json").write_text(journal)
    with pytest.raises(OutputError, match=r"journal\.json is damaged or .*; remove .*out\.partial to start anew"):
        StagedFolder(tmp_path / "out", {})


@pytest.mark.parametrize("leftover", [[], [".lock"], [".lock", "journal.json.part"]])
def test_a_run_killed_before_its_journal_is_no_obstacle(leftover, tmp_path):
    (tmp_path / "out.partial").mkdir()
    for name in leftover:
        (tmp_path / "out.partial" / name).touch()
    with StagedFolder(tmp_path / "out", FINGERPRINT) as staged:
        staged.finish()
    assert not list((tmp_path / "out").iterdir())


def test_two_cannot_make_one_folder_at_once(tmp_path):
    out = tmp_path / "out"
    with StagedFolder(out, FINGERPRINT), pytest.raises(OutputError, match="being written by another process"):  # noqa: SIM117
        with StagedFolder(out, FINGERPRINT):
            pass
    interrupted(out)  # the lock went with the block


def test_the_lock_does_not_outlive_a_failure_that_is_remembered(tmp_path):
    try:
        with StagedFolder(tmp_path / "out", FINGERPRINT):
            raise RuntimeError
    except RuntimeError as error:
        kept = error  # with its frames, as a notebook keeps them
        interrupted(tmp_path / "out")
    assert kept


def test_what_another_process_completed_meanwhile_is_known(tmp_path):
    late = StagedFolder(tmp_path / "out", FINGERPRINT)
    interrupted(tmp_path / "out")
    with late:
        assert set(late.done) == {"a"}


def test_who_comes_second_to_a_folder_finished_meanwhile_is_told(tmp_path):
    late = StagedFolder(tmp_path / "out", FINGERPRINT)
    with StagedFolder(tmp_path / "out", FINGERPRINT) as staged:
        (staged.path / "a").touch()
        staged.finish()
    with pytest.raises(OutputError, match="exists and is not an empty folder"), late:
        pass


def test_killed_before_it_has_its_name_it_goes_on_from_there(tmp_path, monkeypatch):
    """Without its journal nothing would tell what the folder is."""

    def die(self, target):
        raise KeyboardInterrupt

    with StagedFolder(tmp_path / "out", FINGERPRINT) as staged:
        (staged.path / "a").write_text("a")
        staged.record("a", "1")
        monkeypatch.setattr(type(tmp_path), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            staged.finish()
    monkeypatch.undo()
    assert set(StagedFolder(tmp_path / "out", FINGERPRINT).done) == {"a"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_explained_wherever_it_happens(number, tmp_path):
    with (
        pytest.raises(OutputError, match=r"no space left for .*out.*run the same command again"),
        StagedFolder(tmp_path / "out", FINGERPRINT),
    ):
        raise OSError(number, os.strerror(number))
    assert set(interrupted(tmp_path / "out").done) == {"a"}


def test_no_space_for_the_journal_is_explained(tmp_path, monkeypatch):
    def refuse(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(tmp_path), "write_text", refuse)
    with pytest.raises(OutputError, match="no space left"), StagedFolder(tmp_path / "out", FINGERPRINT):
        pass


def test_an_error_of_another_kind_passes_as_it_is(tmp_path):
    with pytest.raises(OSError, match="boom") as caught, StagedFolder(tmp_path / "out", FINGERPRINT):
        raise OSError(errno.EIO, "boom")
    assert not isinstance(caught.value, OutputError)


def test_too_little_space_is_refused_with_both_numbers(tmp_path, monkeypatch):
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(0, 0, 1_000_000_000))
    StagedFolder(tmp_path / "out", FINGERPRINT).check_space(1_000_000_000)
    with pytest.raises(OutputError, match=r"needs 2\.50 GB and its disk has 1\.00 GB free; free some"):
        StagedFolder(tmp_path / "out", FINGERPRINT).check_space(2_500_000_000)


def test_what_a_killed_run_wrote_counts_as_space(tmp_path, monkeypatch):
    staged = interrupted(tmp_path / "out", files=("model-1.safetensors",))
    (staged.path / "model-2.safetensors.part").write_bytes(b"x" * 100)
    written = len("model-1.safetensors") + 100
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(0, 0, 50))
    staged.check_space(written + 50)
    with pytest.raises(OutputError):
        staged.check_space(written + 51)


def test_free_bytes_looks_at_the_nearest_folder_that_exists(tmp_path):
    assert abs(free_bytes(tmp_path / "a" / "b") - shutil.disk_usage(tmp_path).free) < 2**30


def test_a_target_may_be_relative_or_at_home_or_end_in_a_slash_or_be_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "later")
    assert resolve_target("out/") == tmp_path / "out"
    assert resolve_target("~/out") == tmp_path / "home" / "out"
    assert resolve_target("link") == tmp_path / "disk"
    assert resolve_target("dangling") == tmp_path / "disk" / "later"
    with StagedFolder(tmp_path / "link", FINGERPRINT) as staged:
        (staged.path / "a").touch()
        staged.finish()
    assert (tmp_path / "link" / "a").exists()
    assert (tmp_path / "link").is_symlink()


def with_file(path):
    path.mkdir()
    (path / "a").touch()


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (with_file, "out", "exists and is not an empty folder; give another, or remove it first"),
        (lambda path: path.touch(), "out", "exists and is not an empty folder"),
        (lambda path: path.parent.touch(), "file/out", r"cannot be created: Not a directory \(.*file\)"),
        (lambda path: None, "x" * 250, "cannot be created: File name too long"),
    ],
)
def test_a_target_that_cannot_be_is_refused_at_once(make, name, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(OutputError, match=message):
        resolve_target(tmp_path / name)


def test_a_read_only_place_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(OutputError, match=r"cannot be created: Permission denied .*you may write to"):
        resolve_target(tmp_path / "deep" / "out")


def test_the_root_of_a_disk_is_refused_for_it_cannot_be_renamed_onto(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda self: self.name == "disk")
    with pytest.raises(OutputError, match="is the root of a disk; give a folder in it"):
        resolve_target(tmp_path / "disk")


def test_a_place_that_refuses_only_when_written_to_is_explained(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    staged = StagedFolder(tmp_path / "out", FINGERPRINT)
    monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    with pytest.raises(OutputError, match="cannot be created: Read-only file system"), staged:
        pass


def test_the_journal_is_json_a_person_can_read(tmp_path):
    staged = interrupted(tmp_path / "out")
    assert json.loads((staged.path / "journal.json").read_text())["fingerprint"] == FINGERPRINT
