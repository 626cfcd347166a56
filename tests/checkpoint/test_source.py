"""A source is a folder here or a hub id; anything else is refused, and so is a hub that does not answer."""

import json
import os

import pytest
from huggingface_hub.utils import filter_repo_objects

from moe_codegen.checkpoint import commit_of, resolve_source
from moe_codegen.errors import CheckpointError


def test_a_folder_stands_for_itself_relative_at_home_or_with_a_slash(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("org/model", "org/model/", "./org/model", "~/org/model", tmp_path / "org" / "model"):
        assert resolve_source(source).samefile(tmp_path / "org" / "model")


def test_a_folder_that_may_not_be_read_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may read anything
    with pytest.raises(CheckpointError, match="may not be read by you; ask its owner for access"):
        resolve_source(tmp_path)


def test_a_hub_id_that_is_not_here_and_cannot_be_fetched_says_so():
    told = r"nobody/nothing is not a folder here, and the hub did not give it.*[^.]\. Check"
    with pytest.raises(CheckpointError, match=told):
        resolve_source("nobody/nothing")


@pytest.mark.parametrize("source", ["/no/such/folder", "a/b/c", "~/nothing here", "file://x", "a/b@"])
def test_what_cannot_be_a_hub_id_is_not_asked_of_the_hub(source):
    with pytest.raises(
        CheckpointError, match="neither a folder on this machine nor a hub id such as ORGANISATION/NAME"
    ):
        resolve_source(source)


class Hub:
    """In place of huggingface_hub's `snapshot_download`: a repository of empty files, and what was asked of it."""

    def __init__(self, cache, files):
        self.snapshot, self.files, self.revisions = cache / "models--org--model" / "snapshots" / "c0ffee", files, []

    def __call__(self, name, revision, allow_patterns, ignore_patterns, cache_dir):
        assert name == "org/model"
        self.revisions.append(revision)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects(self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (self.snapshot / file).parent.mkdir(exist_ok=True)
            (self.snapshot / file).write_text(self.files[file])
        return str(self.snapshot)

    @property
    def fetched(self):
        return {str(path.relative_to(self.snapshot)) for path in self.snapshot.rglob("*") if path.is_file()}


INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1.safetensors"}})}
OTHERS = ["consolidated.safetensors", "onnx/model.safetensors", "onnx/config.json", "pytorch_model.bin", "model.pt"]


@pytest.mark.parametrize("weights", [{"model.safetensors": ""}, {"model-1.safetensors": "", **INDEX}], ids=str)
@pytest.mark.parametrize(("source", "revision"), [("org/model", None), ("org/model@refs/pr/1", "refs/pr/1")])
def test_of_a_hub_id_the_weights_that_count_are_fetched_at_its_revision(
    source, revision, weights, monkeypatch, tmp_path
):
    wanted = {"config.json": "{}", "tokenizer.json": "{}", **weights}
    hub = Hub(tmp_path, wanted | dict.fromkeys(OTHERS, ""))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    folder = resolve_source(source)
    assert hub.fetched == wanted.keys()
    assert hub.revisions == [revision, "c0ffee"]  # both halves of one commit
    assert commit_of(folder) == "c0ffee"
    assert commit_of(tmp_path) is commit_of(tmp_path / "models" / "snapshots" / "step-100") is None
