"""Writing safetensors files header first and tensors straight through, so that memory does not grow with the file."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_codegen.checkpoint.reader import DTYPES, INDEX_FILE, SINGLE_FILE

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Large enough that a write costs its bytes and not its call, small beside any layer.
CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that is to be written, and how to get it.

    Attributes:
        name, shape, dtype: as the file's header will say.
        pieces: gives the tensor's values as consecutive parts of its row-major order, in any shape and float dtype;
            called when its turn comes, once, so that no part is held longer than it takes to write.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file to write."""

    file: str
    tensors: tuple[TensorToWrite, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def into_shards(tensors: Iterable[TensorToWrite], max_bytes: int) -> list[Shard]:
    """Cut `tensors`, in their order, into files of at most `max_bytes`; a larger tensor gets a file of its own."""
    groups: list[list[TensorToWrite]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return [Shard(SINGLE_FILE, tuple(groups[0]))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


def index_of(shards: list[Shard]) -> dict[str, dict]:
    """The content of `model.safetensors.index.json`."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    return {"metadata": {"total_size": sum(shard.nbytes for shard in shards)}, "weight_map": weight_map}


def write_index(folder: Path, shards: list[Shard]) -> None:
    """Write the index of several shards; a single file needs none."""
    if len(shards) > 1:
        (folder / INDEX_FILE).write_text(json.dumps(index_of(shards), indent=2) + "\n")


def write_shard(folder: Path, shard: Shard, advance: Callable[[int], None] = lambda nbytes: None) -> str:
    """Write one file and return its SHA-256.

    The bytes go to `<file>.part`, which gets its name when all of them are on the disk. `advance` is told the bytes
    of each write as it happens.

    Raises:
        OSError: the disk refused, for instance for want of space.
        ValueError: a tensor gave more or fewer bytes than its shape has.

    Whatever is raised, also by `advance`, what was written of this file is removed.
    """
    part = folder / f"{shard.file}.part"
    digest = hashlib.sha256()
    # Widest dtype first: every tensor then starts at a multiple of its item's size.
    tensors = sorted(shard.tensors, key=lambda tensor: -tensor.dtype.itemsize)
    try:
        with part.open("wb") as stream:
            header = _header(tensors)
            digest.update(header)
            stream.write(header)
            for tensor in tensors:
                for chunk in _chunks(tensor):
                    digest.update(chunk)
                    stream.write(chunk)
                    advance(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(folder / shard.file)
    return digest.hexdigest()


def sha256_of(path: Path, advance: Callable[[int], None] = lambda nbytes: None) -> str:
    """The SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _header(tensors: list[TensorToWrite]) -> bytes:
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensor: TensorToWrite) -> Iterator[memoryview]:
    """The tensor's bytes in order, cast to its dtype a few rows at a time."""
    written = 0
    for piece in tensor.pieces():
        if piece.numel() == 0:
            continue
        rows = piece if piece.dim() > 1 else piece.reshape(1, -1)
        for values in rows.split(max(1, CHUNK_BYTES // (rows[0].numel() * tensor.dtype.itemsize))):
            values = values.to(tensor.dtype).contiguous()
            chunk = values.view(-1).view(torch.uint8).numpy().data
            written += len(chunk)
            yield chunk
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name} gave {written} bytes; its shape {tensor.shape} has {tensor.nbytes}")
