"""What a run reads, identified by content: a moved folder is the same, another folder of the same name is not."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint import resolve_source, sha256_of
from moe_codegen.data import open_source, packed_languages
from moe_codegen.data.passes.stage import MANIFEST
from moe_codegen.errors import ConfigError
from moe_codegen.settings import path_fields
from moe_codegen.training.folder import read_summary
from moe_codegen.training.models import config_file
from moe_codegen.training.settings import TrainSettings


def identify(settings: TrainSettings) -> dict[str, str]:
    """Field -> a hash of what it names, of every field that names files; raises where these cannot be read."""
    found = {name: _IDENTITY[name](value) for name in path_fields(settings) if (value := getattr(settings, name))}
    return {name: hashlib.sha256(json.dumps(content).encode()).hexdigest() for name, content in found.items()}


def flops_spent(runs: Sequence[str]) -> float:
    """The training FLOPs of finished runs together. Raises `ConfigError` for one that is not finished."""
    summaries = {run: read_summary(run) for run in runs}
    for run, summary in summaries.items():
        if summary is None:
            raise ConfigError(f"{run} is no finished run, so its training FLOPs are not known; let it end first")
    return sum(summary["training_flops"] for summary in summaries.values() if summary)


def _model(source: str) -> dict[str, str]:
    return _hashes(resolve_source(source), "*.safetensors", "config.json", "tokenizer.json")


def _config(source: str) -> dict[str, str]:
    file = config_file(source)
    return _hashes(file.parent, file.name)


def _tokenizer(source: str) -> dict[str, str]:
    return _hashes(resolve_source(source), "tokenizer.json")


def _packed(folders: Sequence[str]) -> list[Any]:
    for folder in folders:
        packed_languages(folder)  # raises for anything else
    # The manifest counts what is in the shards, which may be terabytes.
    return [[_hashes(Path(folder), MANIFEST), _sizes(Path(folder), "*.parquet")] for folder in folders]


def _documents(source: str) -> list[list[Any]]:
    return [[unit.name, unit.nbytes, unit.identity] for unit in open_source(source).units]


def _hashes(folder: Path, *patterns: str) -> dict[str, str]:
    return {path.name: sha256_of(path) for pattern in patterns for path in sorted(folder.glob(pattern))}


def _sizes(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.glob(pattern))}


_IDENTITY: dict[str, Callable[[Any], Any]] = {
    "model": _model,
    "config": _config,
    "tokenizer": _tokenizer,
    "train": _packed,
    "validation": _documents,
    "equal_flops": flops_spent,
}
