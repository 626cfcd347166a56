"""What a reader opens, how little it reads for that, and what it refuses."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from moe_codegen.checkpoint import CheckpointReader, read_json
from moe_codegen.errors import CheckpointError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.zeros(2, 2, dtype=torch.float16),
}


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two shards: a and b, then c."""
    (tmp_path / "config.json").write_text('{"model_type": "phi"}')
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / "one.safetensors")
    save_file({"c": TENSORS["c"]}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_it_maps_every_tensor_of_every_shard(sharded):
    reader = CheckpointReader(sharded)
    assert set(reader) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(reader[name], tensor)
        assert reader[name].dtype == tensor.dtype == reader.headers[name].dtype
    assert reader.nbytes == 6 * 4 + 4 * 2 + 4 * 2
    assert reader.files == ["one.safetensors", "two.safetensors"]


def test_opening_and_asking_for_names_reads_no_tensor(sharded, monkeypatch):
    reader = CheckpointReader(sharded)
    monkeypatch.setattr(CheckpointReader, "__getitem__", lambda self, name: pytest.fail("read a tensor"))
    CheckpointReader(sharded)
    assert "a" in reader
    assert "z" not in reader
    assert len(reader) == 3


def test_a_tensor_is_a_view_of_the_file_and_not_a_copy(sharded):
    reader = CheckpointReader(sharded)
    assert reader["a"].untyped_storage().data_ptr() == reader["a"].untyped_storage().data_ptr()


def test_a_single_file_goes_before_an_index_as_in_transformers(sharded):
    save_file({"single": torch.ones(1)}, sharded / "model.safetensors")
    assert list(CheckpointReader(sharded)) == ["single"]


def test_links_are_followed_as_in_a_hub_snapshot(sharded, tmp_path_factory):
    snapshot = tmp_path_factory.mktemp("snapshot")
    for file in sharded.iterdir():
        (snapshot / file.name).symlink_to(file)
    reader = CheckpointReader(snapshot)
    assert torch.equal(reader["a"], TENSORS["a"])
    assert reader.stamps() == CheckpointReader(sharded).stamps()


def test_stamps_change_when_a_file_does(sharded):
    before = CheckpointReader(sharded).stamps()
    assert set(before) == {"config.json", "one.safetensors", "two.safetensors"}
    save_file({"c": TENSORS["c"] + 1}, sharded / "two.safetensors")
    after = CheckpointReader(sharded).stamps()
    assert {file for file in before if before[file] != after[file]} == {"two.safetensors"}


def truncate(folder):
    path = folder / "two.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def only_adapters(folder):
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"two\.safetensors is truncated or damaged .* fetch it again"),
        (lambda f: (f / "two.safetensors").write_bytes(b""), r"two\.safetensors is truncated or damaged"),
        (lambda f: (f / "two.safetensors").unlink(), r"lacks two\.safetensors \(1 of 2 weight files .*fetch the rest"),
        (lambda f: write_index(f, {"a": "one.safetensors", "d": "two.safetensors"}), "places d in two.safetensors"),
        (lambda f: write_index(f, {"a": "two.safetensors", "b": "one.safetensors"}), "places a in two.safetensors"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "has no weight_map"),
        (lambda f: write_index(f, {"a": None}), "has no weight_map, tensor -> file"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (only_adapters, r"holds adapters .*merge_and_unload\(\)"),
        (lambda f: (f / "config.json").write_text("{'a': 1}"), r"config\.json is not valid JSON .*fetch it again"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json holds a JSON list, not an object"),
        (shutil.rmtree, "is not a folder; give the folder that holds config.json"),
    ],
)
def test_what_is_damaged_or_missing_is_named(damage, message, sharded):
    damage(sharded)
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(sharded)


def test_what_may_not_be_read_is_not_called_damaged(sharded, monkeypatch):
    truncate(sharded)
    monkeypatch.setattr(os, "access", lambda path, mode: path != sharded / "two.safetensors")  # root may read anything
    with pytest.raises(CheckpointError, match=r"two\.safetensors may not be read by you; ask its owner for access"):
        CheckpointReader(sharded)
    (sharded / "config.json").unlink()
    (sharded / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Is a directory"):
        CheckpointReader(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused_with_the_way_to_convert_them(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=rf"holds {name}, a pickle.*save_pretrained\(DST\)"):
        CheckpointReader(tmp_path)


def test_no_weights_at_all_names_the_files_looked_for_and_the_way_out_of_pickles(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .*index.json.*save_pretrained\(DST\)"):
        CheckpointReader(tmp_path)


def test_a_dtype_that_is_not_supported_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stores a as C64, which is not supported; save the checkpoint in one"):
        CheckpointReader(tmp_path)


def test_read_json_gives_the_object(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": "é"}
