"""The dense checkpoints a mixture is made of: opened, compared, and read through once for damage."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.checkpoint import resolve_source, sha256_of
from moe_codegen.errors import CheckpointError, ConfigError, MismatchError

# What may differ between fine-tuned checkpoints of one base: who saved them, how, and how they were regularised.
MAY_DIFFER = {"architectures", "dtype", "transformers_version", "use_cache", "_name_or_path", "name_or_path"}
# Fine-tuning moves weights by a few per cent; unrelated models have a cosine near 0.
LEAST_COSINE = 0.5


@dataclass(frozen=True)
class Sources:
    """The base, and the checkpoints whose FFNs become experts (none: the base's own is copied).

    Attributes:
        base: gives the configuration and, unless asked otherwise, all weights outside the experts.
        experts: name -> checkpoint, in the experts' order.
        given: "base" and each expert's name -> what the user named, a path or a hub id.
    """

    base: DenseCheckpoint
    experts: dict[str, DenseCheckpoint] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)

    @property
    def checkpoints(self) -> dict[str, DenseCheckpoint]:
        """Every checkpoint by name, the base first."""
        return {"base": self.base, **{name: expert for name, expert in self.experts.items() if name != "base"}}

    @property
    def nbytes(self) -> int:
        """Bytes of all checkpoints' tensors, each folder counted once."""
        return sum({c.reader.folder: c.reader.nbytes for c in self.checkpoints.values()}.values())

    def scan(self, workers: int, advance: Callable[[int], None]) -> dict[str, dict[str, str]]:
        """Read every weight once; returns checkpoint name -> file -> SHA-256.

        Raises:
            CheckpointError: a weight is NaN or infinite, or a tied weight's second copy differs from the first.
        """
        hashes: dict[Path, dict[str, str]] = {}
        with ThreadPoolExecutor(workers) as pool:
            for checkpoint in self.checkpoints.values():
                folder = checkpoint.reader.folder
                if folder in hashes:
                    continue
                files = checkpoint.reader.files
                futures = [pool.submit(sha256_of, folder / file, advance) for file in files]
                list(pool.map(lambda name, c=checkpoint: _check_finite(c, name), checkpoint.reader.headers))
                hashes[folder] = {file: future.result() for file, future in zip(files, futures, strict=True)}
                _check_duplicates(checkpoint)
        return {name: hashes[checkpoint.reader.folder] for name, checkpoint in self.checkpoints.items()}


def open_sources(source: str | Path, experts: Mapping[str, str | Path] | Iterable[str | Path] | None) -> Sources:
    """Open the base and the experts and check, from headers and samples, that they belong together.

    Raises:
        CheckpointError: one of them cannot be used.
        MismatchError: an expert is not a fine-tuned checkpoint of the base.
        ConfigError: two experts of one name.
    """
    base = DenseCheckpoint(resolve_source(source))
    named = _named(experts)
    opened = {name: DenseCheckpoint(resolve_source(path)) for name, path in named.items()}
    for name, expert in opened.items():
        _check_same_base(base, expert, name)
    return Sources(base, opened, {"base": str(source), **{name: str(path) for name, path in named.items()}})


def _named(experts: Mapping[str, str | Path] | Iterable[str | Path] | None) -> dict[str, str | Path]:
    if experts is None:
        return {}
    if isinstance(experts, Mapping):
        return dict(experts)
    paths = list(experts)
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"two experts are named alike ({', '.join(names)}); name them yourself: NAME=PATH")
    return dict(zip(names, paths, strict=True))


def _check_same_base(base: DenseCheckpoint, expert: DenseCheckpoint, name: str) -> None:
    where = f"expert {name!r} ({expert.reader.folder})"
    ours, theirs = base.config.to_dict(), expert.config.to_dict()
    if ours["vocab_size"] != theirs["vocab_size"]:
        raise MismatchError(
            f"{where} has a vocabulary of {theirs['vocab_size']} tokens, the base one of {ours['vocab_size']}; "
            "experts share the base's embeddings, so tune them without adding tokens"
        )
    different = [key for key in ours if key not in MAY_DIFFER and ours[key] != theirs.get(key)]
    if different:
        key = different[0]
        raise MismatchError(
            f"{where} is not of the base's shape: {key} is {theirs.get(key)!r}, the base's is {ours[key]!r}; "
            "join only checkpoints tuned from one base"
        )
    if _tokenizer_hash(base) != _tokenizer_hash(expert) and None not in (
        _tokenizer_hash(base),
        _tokenizer_hash(expert),
    ):
        raise MismatchError(f"{where} has another tokenizer.json than the base; the same ids would mean other text")
    for tensor in _samples(base):
        cosine = F.cosine_similarity(_sample(base, tensor), _sample(expert, tensor), dim=0).item()
        if not cosine >= LEAST_COSINE:
            raise MismatchError(
                f"{where} does not descend from the base {base.reader.folder}: their {tensor} have a cosine of "
                f"{cosine:.3f}, below {LEAST_COSINE}; join only checkpoints tuned from one base"
            )


def _samples(dense: DenseCheckpoint) -> list[str]:
    """Matrices outside the experts, which even long fine-tuning leaves alike: the first and the last of them."""
    matrices = [name for name, shape in dense.shapes.items() if len(shape) == 2 and ".mlp." not in name]
    return [matrices[0], matrices[-1]]


def _sample(dense: DenseCheckpoint, name: str) -> torch.Tensor:
    return dense[name][:256].float().flatten()


def _tokenizer_hash(dense: DenseCheckpoint) -> str | None:
    path = dense.reader.folder / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _check_finite(dense: DenseCheckpoint, name: str) -> None:
    tensor = dense.reader[name]
    # aminmax passes NaN on, and is far faster than testing each element.
    if tensor.is_floating_point() and not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{dense.reader.folder}: {name} holds {count} values that are NaN or infinite; "
            "the checkpoint is damaged or its training diverged: use an earlier one"
        )


def _check_duplicates(dense: DenseCheckpoint) -> None:
    for duplicate, kept in dense.duplicates.items():
        if not torch.equal(dense.reader[duplicate], dense[kept]):
            raise CheckpointError(
                f"{dense.reader.folder}: {duplicate} differs from {kept}, but config.json says they are one "
                "(tie_word_embeddings); set it to false, or remove the stale one"
            )
