"""Reading checkpoints: lazily, and with a clear word about what is wrong with one."""

import json

import pytest
import torch
from safetensors.torch import save_file

from moe_codegen.checkpoint import CheckpointReader, resolve_source
from moe_codegen.errors import CheckpointError

INDEX = "model.safetensors.index.json"
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def single(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "phi"}')
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {name: f"{name}.safetensors" for name in TENSORS})
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_every_tensor_reads_as_it_was_written(layout, request):
    reader = CheckpointReader(request.getfixturevalue(layout))
    assert set(reader) == set(TENSORS)
    assert len(reader) == 2
    for name, tensor in TENSORS.items():
        assert torch.equal(reader[name], tensor)
        header = reader.headers[name]
        assert (header.shape, header.dtype, header.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
    assert reader.nbytes == 32


def test_stamps_change_when_a_file_does(single):
    before = CheckpointReader(single).stamps()
    assert before == CheckpointReader(single).stamps()
    save_file({**TENSORS, "c": torch.ones(1)}, single / "model.safetensors")
    assert CheckpointReader(single).stamps() != before


def refuses(folder, message):
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    refuses(tmp_path / "nowhere", "is not a folder")
    refuses(tmp_path, r"config.json is missing")


def test_a_config_that_is_no_json_is_refused(single):
    (single / "config.json").write_text("{")
    refuses(single, "is not valid JSON")


def test_a_truncated_shard_is_refused_by_name(sharded):
    path = sharded / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses(sharded, r"a.safetensors is truncated or damaged")


def test_a_missing_shard_is_refused_by_name(sharded):
    (sharded / "b.safetensors").unlink()
    refuses(sharded, r"lacks b.safetensors \(1 of 2 weight files are missing\)")


def test_an_index_that_does_not_fit_its_shards_is_refused(sharded):
    write_index(sharded, {"a": "b.safetensors", "b": "b.safetensors"})
    refuses(sharded, "places a in b.safetensors, which does not hold it")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(single):
    (single / "model.safetensors").unlink()
    refuses(single, "no weights to read")
    (single / "pytorch_model.bin").write_bytes(b"")
    refuses(single, r"holds pytorch_model.bin, a pickle.*save_pretrained")


def test_a_source_is_a_folder_or_a_hub_id(single):
    assert resolve_source(single) == single
    for source in ("no such model!", "/no/such/folder"):
        with pytest.raises(CheckpointError, match="neither a folder on this machine nor a hub id"):
            resolve_source(source)
    with pytest.raises(CheckpointError, match="the hub did not give it"):
        resolve_source("nobody/nothing")  # the tests are offline
