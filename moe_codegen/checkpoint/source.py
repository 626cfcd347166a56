"""From what a user names, a local folder or a hub id, to a folder on this machine."""

import os
import re
from pathlib import Path

from moe_codegen.checkpoint.reader import ASK, INDEX_FILE, SINGLE_FILE, weight_map_of
from moe_codegen.errors import CheckpointError

# What goes with the weights; never pickles, which `upcycle` refuses anyway and which can be as large again.
COMPANIONS = ["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md"]
SUBFOLDERS = "*/*"  # the same weights for other engines, or checkpoints of training
HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


def resolve_source(source: str | Path) -> Path:
    """The folder of `source`: itself if it is a local folder, else the snapshot of that hub id.

    A hub id is `ORGANISATION/NAME`, or `ORGANISATION/NAME@REVISION` for a branch, a tag or a commit. Of its files those
    are fetched that are not here yet: settings and tokenizer, and the weights that transformers would load.

    Raises:
        CheckpointError: neither a folder nor an id the hub (or its local cache) can answer for.
    """
    folder = Path(source).expanduser()
    try:
        is_here = folder.is_dir()
        may_read = not is_here or os.access(folder, os.R_OK | os.X_OK)
    except PermissionError:
        may_read = False
    if not may_read:
        raise CheckpointError(f"{folder} may not be read by you; {ASK}")
    if is_here:
        return folder
    hub_id = HUB_ID.fullmatch(str(source))
    if hub_id is None or folder.is_absolute():
        raise CheckpointError(
            f"{source} is neither a folder on this machine nor a hub id such as ORGANISATION/NAME or "
            "ORGANISATION/NAME@REVISION"
        )
    name, revision = hub_id.groups()
    folder = _fetch(name, revision, COMPANIONS)
    has_index = (folder / INDEX_FILE).exists()
    weights = sorted(set(weight_map_of(folder).values())) if has_index else [SINGLE_FILE]
    return _fetch(name, commit_of(folder) or revision, weights)


def commit_of(folder: Path) -> str | None:
    """The commit that a folder in the hub's cache is a snapshot of; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # only here is the hub needed

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=SUBFOLDERS))
    except Exception as error:  # the hub client's errors have no common base: network, access, spelling
        told = str(error).rstrip(".")
        raise CheckpointError(
            f"{name}{f'@{revision}' if revision else ''} is not a folder here, and the hub did not give it: {told}. "
            "Check the spelling and the network; a gated model needs `hf auth login`"
        ) from error
