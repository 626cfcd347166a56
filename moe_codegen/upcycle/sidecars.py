"""What travels with a checkpoint's weights: tokenizer, generation settings, chat template, licence."""

import shutil
from pathlib import Path

SIDECARS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template*",
    "LICENSE*",
)


def copy_sidecars(source: Path, target: Path) -> None:
    """Copy the files beside the weights; never code, which belongs to another model class."""
    for file in {file for pattern in SIDECARS for file in source.glob(pattern) if file.is_file()}:
        shutil.copyfile(file, target / file.name)
