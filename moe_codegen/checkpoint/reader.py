"""Lazy reading of a safetensors checkpoint: headers first, tensors as views of the memory-mapped files."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from moe_codegen.checkpoint.hub import Snapshot
from moe_codegen.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTERS = "adapter_config.json"
ASK = "ask its owner for access, or give a copy of your own"
CONVERT = (
    'Convert it in a place you trust: `AutoModelForCausalLM.from_pretrained(SRC, dtype="auto").save_pretrained(DST)`'
)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorHeader:
    """What a file's header says of one tensor."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class CheckpointReader(Mapping[str, torch.Tensor]):
    """A checkpoint folder as a read-only mapping from tensor name to tensor.

    Opening reads `config.json`, the index and every file's header, and nothing else. A tensor is a view of the
    mapped file: its bytes live in the page cache, not in this process's own memory, and must not be written to.

    Args:
        folder: the checkpoint.
        weights: whether its weights must be here. If not, a snapshot of the hub may lack weight files: the hub is
            asked for their headers, and their tensors can be read after `fetch`.

    Raises:
        CheckpointError: no such folder, no `config.json`, no safetensors weights, or a missing, truncated or
            damaged file.
    """

    def __init__(self, folder: str | Path, weights: bool = True) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is not a folder; give the folder that holds config.json")
        self.config = read_config(self.folder)
        self._snapshot = None if weights else Snapshot.at(self.folder)
        self.files = _weight_files(self.folder)
        self._handles = {file: _open(path) for file in self.files if (path := self.folder / file).exists()}
        if self.missing and self._snapshot is None:
            raise _lacking(self.folder, self.files, self.missing)
        self.headers: dict[str, TensorHeader] = {}
        for file in self.files:
            for name, (dtype, shape) in self._described(file).items():
                self.headers[name] = _header(file, name, dtype, shape)
        self._check_index()

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor `name`, a view of the mapped file."""
        return self._handles[self.headers[name].file].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.headers  # a mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(header.nbytes for header in self.headers.values())

    @property
    def missing(self) -> list[str]:
        """The weight files that were not here when it was opened; none after `fetch`."""
        return [file for file in self.files if file not in self._handles]

    @property
    def nbytes_missing(self) -> int:
        """Bytes of the tensors in them."""
        return sum(header.nbytes for header in self.headers.values() if header.file not in self._handles)

    def fetch(self) -> None:
        """Download the weight files that are not here; CheckpointError where the hub does not give them."""
        if self._snapshot is not None and self.missing:
            self._snapshot.fetch(self.missing)
            self._handles = CheckpointReader(self.folder)._handles  # whole and undamaged

    def stamps(self) -> dict[str, list[int]]:
        """File -> [bytes, modification time in ns]: changes when a file does, and costs no reading."""
        stats = {file: (self.folder / file).stat() for file in ["config.json", *self.files]}
        return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}

    def _described(self, file: str) -> dict[str, tuple[str, list[int]]]:
        """Tensor -> (dtype, shape), as the header of `file` has it, here or at the hub."""
        if self._snapshot is not None and file not in self._handles:
            header = self._snapshot.header(file)
            if header is None:
                raise _lacking(self.folder, self.files, [file])
            return header
        handle = self._handles[file]
        views = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (a handle is no mapping)
        return {name: (view.get_dtype(), view.get_shape()) for name, view in views.items()}

    def _check_index(self) -> None:
        if self.files == [SINGLE_FILE]:
            return
        for name, file in weight_map_of(self.folder).items():
            if name not in self.headers or self.headers[name].file != file:
                raise CheckpointError(
                    f"{self.folder / INDEX_FILE} places {name} in {file}, which does not hold it; "
                    "the download is incomplete or mixed from two versions: fetch the checkpoint again"
                )


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint, its `model_type` a text, if need be an empty one.

    Raises:
        CheckpointError: there is none, or there are only adapters to such a checkpoint.
    """
    refuse_adapters(folder)
    config = read_json(folder / "config.json")
    return {**config, "model_type": str(config.get("model_type") or "")}


def refuse_adapters(folder: Path) -> None:
    """Raise CheckpointError if `folder` holds PEFT's adapters without the model that they belong to."""
    if (folder / ADAPTERS).exists() and not any((folder / file).exists() for file in (SINGLE_FILE, INDEX_FILE)):
        raise CheckpointError(
            f"{folder} holds adapters ({ADAPTERS}) and not the model they belong to; merge them into it first: "
            "`peft.AutoPeftModelForCausalLM.from_pretrained(ADAPTERS).merge_and_unload().save_pretrained(DST)`, after "
            "`import moe_codegen` if it is a mixture"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError when it is missing or no such."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint folder holds one") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; {ASK}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a JSON {type(record).__name__}, not an object; fetch it again")
    return record


def weight_map_of(folder: Path) -> dict[str, str]:
    """Tensor name -> file, as the index has it."""
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map, tensor -> file; fetch it again")
    return weight_map


def _weight_files(folder: Path) -> list[str]:
    if (folder / INDEX_FILE).exists() and not (folder / SINGLE_FILE).exists():  # in the order that transformers looks
        return sorted(set(weight_map_of(folder).values()))
    return [SINGLE_FILE]


def _lacking(folder: Path, files: list[str], missing: list[str]) -> CheckpointError:
    if (folder / INDEX_FILE).exists():
        return CheckpointError(
            f"{folder} lacks {missing[0]} ({len(missing)} of {len(files)} weight files are missing), "
            f"which {INDEX_FILE} names; fetch the rest of the checkpoint"
        )
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
    if pickled:
        return CheckpointError(
            f"{folder} holds {pickled[0].name}, a pickle, which can run code when read; only safetensors is read. "
            + CONVERT
        )
    return CheckpointError(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}: no weights to read. "
        f"Fetch them; if they were only published as pickles (.bin), which are never fetched: {CONVERT}"
    )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if not os.access(path, os.R_OK):  # safetensors would have it that there is no such file
            raise CheckpointError(f"{path} may not be read by you; {ASK}") from error
        raise CheckpointError(
            f"{path} is truncated or damaged ({path.stat().st_size} bytes; {error}); fetch it again"
        ) from error


def _header(file: str, name: str, stored_as: str, shape: list[int]) -> TensorHeader:
    dtype = DTYPES.get(stored_as)
    if dtype is None:
        raise CheckpointError(
            f"{file} stores {name} as {stored_as}, which is not supported; "
            f"save the checkpoint in one of {', '.join(DTYPES)}"
        )
    return TensorHeader(file, tuple(shape), dtype)
