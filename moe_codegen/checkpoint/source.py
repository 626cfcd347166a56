"""From what a user names, a local folder or a hub id, to a folder on this machine."""

import re
from pathlib import Path

from moe_codegen.errors import CheckpointError

# Weights and what goes with them; never pickles, which `upcycle` refuses anyway and which can be as large again.
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md"]


def resolve_source(source: str | Path, revision: str | None = None) -> Path:
    """The folder of `source`: itself if it is a local folder, else the hub snapshot of that id.

    Raises:
        CheckpointError: neither a folder nor an id the hub (or its local cache) can answer for.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or folder.is_absolute():
        raise CheckpointError(f"{source} is neither a folder on this machine nor a hub id such as ORGANISATION/NAME")
    from huggingface_hub import snapshot_download  # only here is the hub needed

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client's errors have no common base: network, access, spelling
        raise CheckpointError(
            f"{source} is not a folder here, and the hub did not give it: {error}. "
            "Check the spelling and the network; a gated model needs `hf auth login`"
        ) from error
