"""Where a mixture came from, as `upcycle.json` keeps it."""

from importlib import metadata
from typing import Any

from moe_codegen.checkpoint import commit_of
from moe_codegen.upcycle.options import UpcycleOptions
from moe_codegen.upcycle.plan import Plan
from moe_codegen.upcycle.sources import Hashes, Sources

PROVENANCE_FILE = "upcycle.json"


def provenance_of(
    plan: Plan, sources: Sources, options: UpcycleOptions, hashes: Hashes, files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """SHA-256 of every source and result, the hub's commits, the options, the versions, and each tensor's origin."""

    def origin(name: str) -> dict[str, Any]:
        folder = sources.checkpoints[name].reader.folder
        return {"given": sources.given[name], "commit": commit_of(folder), "sha256": hashes[name]}

    return {
        "source": {**origin("base"), "layout": sources.base.layout.name},
        "experts": {name: origin(name) for name in sources.experts},
        "options": options.to_dict(),
        "versions": {name: version_of(name) for name in ("moe-codegen", "torch", "transformers", "safetensors")},
        "files": files,
        "tensors": {record.pop("name"): record for record in plan.records()},
    }


def version_of(distribution: str) -> str:
    """The version of an installed package; "not installed" when it runs from a checkout."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
