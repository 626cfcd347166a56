"""Dense checkpoints for these tests: made once, tuned, damaged; and what is asked of the results."""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file, save_file

from moe_codegen.checkpoint import CheckpointReader
from tests.tiny import save_dense

SEED_OF_ANOTHER_MODEL = 1


@cache
def _made(layout: str, dtype: torch.dtype, overrides: tuple) -> tuple[Path, object]:
    folder = Path(mkdtemp(prefix=f"{layout}-", dir=_scratch()))
    return folder, save_dense(folder, layout, dtype, **dict(overrides))


@cache
def _scratch() -> str:
    import atexit

    folder = mkdtemp(prefix="moe-codegen-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def dense(layout: str, dtype: torch.dtype = torch.float32, **overrides) -> Path:
    """A checkpoint that many tests share: not to be written to."""
    return _made(layout, dtype, tuple(overrides.items()))[0]


def dense_model_of(layout: str, dtype: torch.dtype = torch.float32, **overrides):
    """The transformers model that `dense(...)` holds."""
    return _made(layout, dtype, tuple(overrides.items()))[1]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by the safetensors library."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def hashes_of(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of everything in `folder`."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def copy_of(folder: Path, to: Path, change=None, **config) -> Path:
    """A copy with other tensors, `change(tensors)`, and other settings."""
    shutil.copytree(folder, to)
    if change is not None:
        tensors = tensors_of(folder)
        change(tensors)
        save_file({n: t.contiguous() for n, t in tensors.items()}, to / "model.safetensors", {"format": "pt"})
    if config:
        (to / "config.json").write_text(json.dumps({**config_of(to), **config}))
    return to


def tuned(folder: Path, to: Path, seed: int, size: float = 0.1, **config) -> Path:
    """A copy with every weight moved by `size` of its tensor's deviation, as fine-tuning would."""

    def move(tensors):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dim() > 0:
                noise = torch.randn(tensor.shape, generator=generator)
                tensors[name] = (tensor.float() + size * tensor.float().std() * noise).to(tensor.dtype)

    return copy_of(folder, to, move, **config)


def same(first: Path, second: Path, but: tuple[str, ...] = ()) -> None:
    """Assert that two checkpoints hold the same tensors, bit for bit and in the same dtypes; `but` name parts."""
    ours, theirs = tensors_of(first), tensors_of(second)
    theirs = {name: tensor for name, tensor in theirs.items() if not any(part in name for part in but)}
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.view(-1).view(torch.uint8), theirs[name].view(-1).view(torch.uint8)), name


def headers_of(folder: Path):
    return CheckpointReader(folder).headers


class Steps:
    """A progress that remembers: (step, total, done) of each begin, and the bytes of the advances after it."""

    def __init__(self, then=None) -> None:
        self.begun, self.advanced, self.then = [], [], then

    def __call__(self, step, total, done):
        self.begun.append((step, total, done))
        self.advanced.append(0)

        def advance(nbytes):
            self.advanced[-1] += nbytes
            if self.then is not None:
                self.then(step)

        return advance
