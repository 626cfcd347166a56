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
            folder.name: [
                file.read_text(encoding="utf-8", errors="replace")
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
            for folder in sorted(path.iterdir())
            if folder.is_dir()
        }
    elif path.is_file():
        texts = {}
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    expert, text = _record(line, f"{path}, line {number}")
                    texts.setdefault(expert, []).append(text)
    else:
        raise ConfigError(f"{path} does not exist; give a JSONL file, or a folder with a folder for each expert")
    if not texts:
        raise ConfigError(f"{path} holds no texts; give a JSONL file, or a folder with a folder for each expert")
    return texts


def _record(line: str, where: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
        expert, text = record["expert"], record["text"]
        if not (isinstance(expert, str) and isinstance(text, str)):
            raise TypeError("both must be strings")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{where} is not {{"expert": NAME, "text": TEXT}} ({error!r}); write one such object on each line'
        ) from error
    return expert, text
