"""What is written is what the safetensors library reads, bit for bit, however it was cut into pieces."""

import errno
import hashlib
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from moe_codegen.checkpoint import Shard, TensorToWrite, into_shards, sha256_of, write_index, write_shard, writer

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]


@st.composite
def tensors_in_pieces(draw):
    """(tensor, pieces): a tensor and a way to cut its row-major order, some pieces not contiguous."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(1))
    tensor = values.to(dtype)
    if not shape or draw(st.booleans()):
        return tensor, [tensor]
    if len(shape) == 2 and draw(st.booleans()):
        return tensor, [tensor.t().contiguous().t()]
    cuts = sorted(draw(st.lists(st.integers(0, shape[0]), max_size=3)))
    edges = [0, *cuts, shape[0]]
    return tensor, [tensor[a:b] for a, b in pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(st.lists(tensors_in_pieces(), min_size=1, max_size=5), st.integers(1, 64))
def test_any_tensors_in_any_pieces_come_back_bit_for_bit(drawn, chunk_bytes):
    shard = Shard(
        "x.safetensors",
        tuple(
            TensorToWrite(f"t{index}", tuple(tensor.shape), tensor.dtype, lambda pieces=pieces: pieces)
            for index, (tensor, pieces) in enumerate(drawn)
        ),
    )
    advances = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHUNK_BYTES", chunk_bytes)
        path = Path(folder, "x.safetensors")
        digest = write_shard(Path(folder), shard, advances.append)
        assert sorted(Path(folder).iterdir()) == [path]
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)
        loaded = load_file(path)
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
        starts = data_offsets(path)
    assert sum(advances) == shard.nbytes == sum(tensor.nbytes for tensor, _ in drawn)
    for index, (tensor, _) in enumerate(drawn):
        assert loaded[f"t{index}"].dtype == tensor.dtype
        assert loaded[f"t{index}"].shape == tensor.shape
        assert torch.equal(loaded[f"t{index}"].view(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        assert starts[f"t{index}"] % tensor.dtype.itemsize == 0


def data_offsets(path):
    """Tensor name -> where its bytes start in the file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def one(values, dtype=torch.float32, shape=None, name="x"):
    return TensorToWrite(name, shape or tuple(values.shape), dtype, lambda: [values])


def test_pieces_are_cast_to_the_dtype_that_is_promised(tmp_path):
    values = torch.randn(7, 5)
    write_shard(tmp_path, Shard("x.safetensors", (one(values, torch.bfloat16),)))
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], values.bfloat16())


@pytest.mark.parametrize("shape", [(2, 2), (4, 3)])
def test_pieces_that_do_not_fill_the_shape_are_an_error_and_leave_no_file(shape, tmp_path):
    with pytest.raises(ValueError, match="x gave 24 bytes; its shape"):
        write_shard(tmp_path, Shard("x.safetensors", (one(torch.ones(3, 2), shape=shape),)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_or_is_interrupted_leaves_no_file(error, tmp_path):
    def fail(nbytes):
        raise error

    with pytest.raises(type(error)):
        write_shard(tmp_path, Shard("x.safetensors", (one(torch.ones(3)),)), fail)
    assert not list(tmp_path.iterdir())


def test_the_name_appears_only_when_every_byte_is_there(tmp_path):
    def watch(nbytes):
        assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors.part"]

    write_shard(tmp_path, Shard("x.safetensors", (one(torch.ones(3)),)), watch)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 60))
def test_shards_keep_the_order_and_the_limit_but_for_a_tensor_too_large_alone(sizes, limit):
    tensors = [one(torch.empty(size, device="meta"), torch.uint8, name=str(i)) for i, size in enumerate(sizes)]
    shards = into_shards(tensors, limit)
    assert [tensor for shard in shards for tensor in shard.tensors] == tensors
    assert all(shard.nbytes <= limit or len(shard.tensors) == 1 for shard in shards)
    assert len({shard.file for shard in shards}) == len(shards)
    # No two neighbours would have fitted in one file.
    assert all(a.nbytes + b.tensors[0].nbytes > limit for a, b in pairwise(shards))


def test_one_file_has_the_plain_name_and_no_index_and_several_have_both(tmp_path):
    pair = [one(torch.ones(2), name="a"), one(torch.ones(3), name="b")]
    (single,) = into_shards(pair, 100)
    assert single.file == "model.safetensors"
    write_index(tmp_path, [single])
    assert not list(tmp_path.iterdir())
    shards = into_shards(pair, 12)
    write_index(tmp_path, shards)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 20},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
