"""A source is a folder here or a hub id; anything else is refused, and so is a hub that does not answer."""

import pytest

from moe_codegen.checkpoint import resolve_source
from moe_codegen.errors import CheckpointError


def test_a_folder_stands_for_itself_relative_at_home_or_with_a_slash(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("org/model", "org/model/", "./org/model", "~/org/model", tmp_path / "org" / "model"):
        assert resolve_source(source).samefile(tmp_path / "org" / "model")


def test_a_hub_id_that_is_not_here_and_cannot_be_fetched_says_so():
    with pytest.raises(CheckpointError, match=r"nobody/nothing is not a folder here, and the hub did not give it"):
        resolve_source("nobody/nothing")


@pytest.mark.parametrize("source", ["/no/such/folder", "a/b/c", "~/nothing here", "file://x"])
def test_what_cannot_be_a_hub_id_is_not_asked_of_the_hub(source):
    with pytest.raises(
        CheckpointError, match="neither a folder on this machine nor a hub id such as ORGANISATION/NAME"
    ):
        resolve_source(source)


def test_a_hub_id_is_fetched_without_pickles_and_at_its_revision(monkeypatch, tmp_path):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve_source("org/model", revision="v2") == tmp_path
    assert asked["name"] == "org/model"
    assert asked["revision"] == "v2"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])
