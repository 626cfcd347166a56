"""From what a user names, a local folder or a hub id, to a folder on this machine."""

import os
import re
from pathlib import Path

from moe_codegen.checkpoint.hub import commit_of, fetch
from moe_codegen.checkpoint.reader import ADAPTERS, ASK, INDEX_FILE, SINGLE_FILE, weight_map_of
from moe_codegen.errors import CheckpointError

# What goes with the weights; never pickles, which `upcycle` refuses anyway and which can be as large again.
COMPANIONS = ["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md"]
HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


def resolve_source(source: str | Path, weights: bool = True) -> Path:
    """The folder of `source`: itself if it is a local folder, else the snapshot of that hub id.

    A hub id is `ORGANISATION/NAME`, or `ORGANISATION/NAME@REVISION` for a branch, a tag or a commit. Of its files those
    are fetched that are not here yet: settings and tokenizer, and with `weights` those that transformers would load.

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
    folder = fetch(name, revision, COMPANIONS)
    if not weights and not (folder / ADAPTERS).exists():  # whether there is a model, too, shows in the weights
        return folder
    has_index = (folder / INDEX_FILE).exists()
    files = sorted(set(weight_map_of(folder).values())) if has_index else [SINGLE_FILE]
    return fetch(name, commit_of(folder) or revision, files)
