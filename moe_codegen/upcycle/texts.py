"""Texts that show what each expert is good at, read from files."""

import json
from pathlib import Path

from moe_codegen.errors import ConfigError


def read_router_data(path: Path) -> dict[str, list[str]]:
    """Expert name -> its texts.

    Either JSONL, an object `{"expert": NAME, "text": TEXT}` on each line; or a folder with a folder for each expert,
    every file below it being one text.

    Raises:
        ConfigError: neither, or a line that is not such an object.
    """
    if path.is_dir():
        texts = {
            folder.name: [file.read_text(errors="replace") for file in sorted(folder.rglob("*")) if file.is_file()]
            for folder in sorted(path.iterdir())
            if folder.is_dir()
        }
    elif path.is_file():
        texts = {}
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                record = json.loads(line)
                texts.setdefault(record["expert"], []).append(record["text"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigError(
                    f'{path}, line {number} is not {{"expert": NAME, "text": TEXT}} ({error!r}); '
                    "write one such object on each line"
                ) from error
    else:
        raise ConfigError(f"{path} does not exist; give a JSONL file, or a folder with a folder for each expert")
    if not texts:
        raise ConfigError(f"{path} holds no texts; give a JSONL file, or a folder with a folder for each expert")
    return texts
