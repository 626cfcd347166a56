"""The demo writes to its own folder and to nobody else's."""

import pytest

from moe_codegen.checkpoint.staging import staged_path
from moe_codegen.demo import Workspace
from moe_codegen.errors import OutputError


def test_a_part_is_held_once_it_is_finished_with_the_same_settings(tmp_path):
    workspace = Workspace(tmp_path / "out")
    part = workspace.clear("dense")
    part.mkdir()
    assert not workspace.holds("dense", {"seed": 0})
    workspace.finish("dense", {"seed": 0})
    again = Workspace(tmp_path / "out")
    assert again.holds("dense", {"seed": 0})
    assert not again.holds("dense", {"seed": 1})
    (part / "file").touch()
    unfinished = staged_path(part)
    unfinished.mkdir()
    assert not again.clear("dense").exists()
    assert not unfinished.exists()
    assert not again.holds("dense", {"seed": 0})


def test_a_folder_that_is_not_a_demos_is_left_alone(tmp_path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "mine").write_text("precious")
    with pytest.raises(OutputError, match="not a demo's"):
        Workspace(tmp_path)
    assert (tmp_path / "dense" / "mine").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_file_in_its_place_is_an_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="give another folder"):
        Workspace(tmp_path / "out")


def test_an_empty_folder_will_do(tmp_path):
    assert not Workspace(tmp_path).holds("dense", {})
