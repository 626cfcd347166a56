"""The dense checkpoints a mixture is made of: opened, compared, and read through once for damage."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.checkpoint import read_json, resolve_source, sha256_of
from moe_codegen.errors import CheckpointError, ConfigError, MismatchError
from moe_codegen.upcycle.parallel import Advance, run_parallel

# Checkpoint name -> file -> SHA-256.
Hashes = dict[str, dict[str, str]]
# What may differ between fine-tuned checkpoints of one base: who saved them, how, how they were regularised, and
# which tokens start, end and pad a text.
MAY_DIFFER = re.compile(
    r"architectures|dtype|transformers_version|use_cache|_?name_or_path|initializer_range|.*(dropout|pdrop)"
    r"|.*_token_id"
)
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

    @property
    def to_download(self) -> dict[Path, int]:
        """Folder -> bytes of the weights that `fetch` will download into it; empty if all are here."""
        readers = [checkpoint.reader for checkpoint in (self.base, *self.experts.values())]
        return {reader.folder: reader.nbytes_missing for reader in readers if reader.missing}

    def fetch(self) -> None:
        """Download the weights of hub ids that are not here yet, and check what shows in them alone.

        Raises:
            CheckpointError: the hub does not give them.
            MismatchError: an expert is not a fine-tuned checkpoint of the base.
        """
        if self.to_download:
            for checkpoint in (self.base, *self.experts.values()):
                checkpoint.reader.fetch()
            self.check_descent()

    def check_descent(self) -> None:
        """Raise MismatchError if the weights of an expert are not those of the base, moved by fine-tuning."""
        for name, expert in self.experts.items():
            _check_descent(self.base, expert, name)

    def scan(self, workers: int, dtype: torch.dtype | None, advance: Advance) -> Hashes:
        """Read every weight once.

        Raises:
            CheckpointError: a weight is NaN or infinite, or a tied weight's second copy differs from the first.
            ConfigError: a weight is too large for `dtype`, which is to be written.
        """
        hashes: dict[Path, dict[str, str]] = {}
        for checkpoint in {c.reader.folder: c for c in self.checkpoints.values()}.values():
            folder, files = checkpoint.reader.folder, checkpoint.reader.files
            tasks: list[Callable[[Advance], Any]] = [partial(sha256_of, folder / file) for file in files]
            tasks += [partial(_check_finite, checkpoint, name, dtype) for name in checkpoint.reader]
            digests = run_parallel(tasks, workers, advance)
            hashes[folder] = dict(zip(files, digests[: len(files)], strict=True))
            _check_duplicates(checkpoint)
        return {name: hashes[checkpoint.reader.folder] for name, checkpoint in self.checkpoints.items()}


def open_sources(source: str | Path, experts: Mapping[str, str | Path] | Iterable[str | Path] | None) -> Sources:
    """Open the base and the experts and check that they belong together.

    That is told from headers, and from samples of the weights if all are here; those of a hub id need not be.

    Raises:
        CheckpointError: one of them cannot be used.
        MismatchError: an expert is not a fine-tuned checkpoint of the base.
        ConfigError: two experts of one name, none at all, or one that takes the base's name.
    """
    base = _open(source)
    named = _named(experts)
    opened = {name: _open(path) for name, path in named.items()}
    for name, expert in opened.items():
        if name == "base" and not expert.reader.folder.samefile(base.reader.folder):
            raise ConfigError(f"the name 'base' stands for {source}; call the expert {named[name]} something else")
        _check_same_base(base, expert, name)
    sources = Sources(base, opened, {"base": str(source), **{name: str(path) for name, path in named.items()}})
    if not sources.to_download:
        sources.check_descent()
    return sources


def _open(source: str | Path) -> DenseCheckpoint:
    return DenseCheckpoint(resolve_source(source, weights=False), weights=False)


def _named(experts: Mapping[str, str | Path] | Iterable[str | Path] | None) -> dict[str, str | Path]:
    if experts is None:
        return {}
    if isinstance(experts, str | Path):
        raise ConfigError(f"experts={str(experts)!r} is one path; give a list of paths, or name -> path")
    if isinstance(experts, Mapping):
        named = dict(experts)
    else:
        named = _named_by_folder(list(experts))
    if not named:
        raise ConfigError("experts is empty; leave it out to copy the base's own FFN")
    return named


def _named_by_folder(paths: list[str | Path]) -> dict[str, str | Path]:
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"two experts are named alike ({', '.join(names)}); name them yourself: NAME=PATH")
    return dict(zip(names, paths, strict=True))


def _check_same_base(base: DenseCheckpoint, expert: DenseCheckpoint, name: str) -> None:
    where = _where(expert, name)
    if expert.architecture != base.architecture:
        raise MismatchError(
            f"{where} is a {expert.architecture.family}, the base a {base.architecture.family}; "
            "join only checkpoints tuned from one base"
        )
    ours, theirs = _shape_of(base), _shape_of(expert)
    if ours["vocab_size"] != theirs["vocab_size"]:
        raise MismatchError(
            f"{where} has a vocabulary of {theirs['vocab_size']} tokens, the base one of {ours['vocab_size']}; "
            "experts share the base's embeddings, so tune them without adding tokens"
        )
    different = [key for key in ours if ours[key] != theirs[key]]
    if different:
        key = different[0]
        raise MismatchError(
            f"{where} is not of the base's shape: {key} is {theirs.get(key)!r}, the base's is {ours[key]!r}; "
            "join only checkpoints tuned from one base"
        )
    our_tokens, their_tokens = _tokens(base), _tokens(expert)
    if our_tokens and their_tokens and our_tokens != their_tokens:
        raise MismatchError(
            f"the tokenizer.json of {where} makes other tokens than the base's, so the same ids would mean other "
            "text; join only checkpoints with the base's tokenizer"
        )


def _check_descent(base: DenseCheckpoint, expert: DenseCheckpoint, name: str) -> None:
    for tensor in _samples(base):
        cosine = F.cosine_similarity(_sample(base, tensor), _sample(expert, tensor), dim=0).item()
        if not cosine >= LEAST_COSINE:
            raise MismatchError(
                f"{_where(expert, name)} does not descend from the base {base.reader.folder}: their {tensor} have a "
                f"cosine of {cosine:.3f}, below {LEAST_COSINE}; join only checkpoints tuned from one base"
            )


def _where(expert: DenseCheckpoint, name: str) -> str:
    return f"expert {name!r} ({expert.reader.folder})"


def _samples(dense: DenseCheckpoint) -> list[str]:
    """Matrices outside the experts, which even long fine-tuning leaves alike: the first and the last of them."""
    matrices = [name for name, shape in dense.shapes.items() if len(shape) == 2 and ".mlp." not in name]
    return [matrices[0], matrices[-1]]


def _sample(dense: DenseCheckpoint, name: str) -> torch.Tensor:
    return dense[name][:256].float().flatten()


def _shape_of(dense: DenseCheckpoint) -> dict[str, Any]:
    """The settings that make up a model's shape: those its class knows, whatever else `config.json` holds."""
    fields, known = dense.config.to_dict(), AutoConfig.for_model(dense.architecture.family).to_dict()
    return {key: fields[key] for key in known if not MAY_DIFFER.fullmatch(key)}


def _tokens(dense: DenseCheckpoint) -> list[Any] | None:
    """What turns text into ids, in `tokenizer.json`; padding and truncation, which training may set, left out."""
    path = dense.reader.folder / "tokenizer.json"
    if not path.exists():
        return None
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    # Each merge is a pair, which older releases wrote as one string.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    return [model.get("vocab"), merges, added]


def _check_finite(dense: DenseCheckpoint, name: str, dtype: torch.dtype | None, advance: Advance) -> None:
    advance(0)  # its bytes are counted where they are hashed
    tensor = dense.reader[name]
    if not tensor.is_floating_point():
        return
    # aminmax passes NaN on, and is far faster than testing each element.
    bounds = torch.stack(torch.aminmax(tensor))
    if not bounds.isfinite().all():
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{dense.reader.folder}: {name} holds {count} values that are NaN or infinite; "
            "the checkpoint is damaged or its training diverged: use an earlier one"
        )
    if dtype is not None and not bounds.to(dtype).isfinite().all():
        raise ConfigError(
            f"{dense.reader.folder}: {name} holds values between {bounds[0]:g} and {bounds[1]:g}, of which some are "
            f"infinite in {str(dtype).removeprefix('torch.')}; convert to bfloat16 or leave dtype out"
        )


def _check_duplicates(dense: DenseCheckpoint) -> None:
    for duplicate, kept in dense.duplicates.items():
        if not torch.equal(dense.reader[duplicate], dense[kept]):
            raise CheckpointError(
                f"{dense.reader.folder}: {duplicate} differs from {kept}, but config.json says they are one "
                "(tie_word_embeddings); set it to false, or remove the stale one"
            )
