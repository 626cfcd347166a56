"""Where a checkpoint came from, as `upcycle.json` keeps it."""

from importlib import metadata
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint import commit_of
from moe_codegen.upcycle.options import UpcycleOptions
from moe_codegen.upcycle.plan import Plan
from moe_codegen.upcycle.sources import Hashes, Sources

PROVENANCE_FILE = "upcycle.json"

# File -> {"bytes", "sha256"}.
Files = dict[str, dict[str, Any]]


def provenance_of(
    plan: Plan, sources: Sources, options: UpcycleOptions, hashes: Hashes, files: Files
) -> dict[str, Any]:
    """The record of a mixture: also the SHA-256 of its sources' files, and each tensor's origin."""

    def origin(name: str) -> dict[str, Any]:
        return origin_of(sources.given[name], sources.checkpoints[name].reader.folder) | {"sha256": hashes[name]}

    return record_of(
        origin("base") | {"layout": sources.base.layout.name},
        options.to_dict(),
        files,
        experts={name: origin(name) for name in sources.experts},
        tensors={record.pop("name"): record for record in plan.records()},
    )


def record_of(source: dict[str, Any], options: dict[str, Any], files: Files, **more: Any) -> dict[str, Any]:
    """What a checkpoint was made from, how and by which versions, and its files with their SHA-256."""
    versions = {name: version_of(name) for name in ("moe-codegen", "torch", "transformers", "safetensors")}
    return {"source": source, "options": options, "versions": versions, "files": files, **more}


def origin_of(given: str | Path, folder: Path) -> dict[str, Any]:
    """A source as the user named it, and the commit of one that came from the hub."""
    return {"given": str(given), "commit": commit_of(folder)}


def version_of(distribution: str) -> str:
    """The version of an installed package; "not installed" when it runs from a checkout."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
