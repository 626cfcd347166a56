"""How every verb speaks: answers on standard output, everything about the work on standard error."""

import json
from typing import Any

from rich.console import Console

output = Console(highlight=False, soft_wrap=False)
messages = Console(stderr=True, highlight=False)


def print_json(record: dict[str, Any]) -> None:
    """One line of JSON on standard output, as a program wants to read it."""
    output.file.write(json.dumps(record, ensure_ascii=False) + "\n")


def human_bytes(count: int) -> str:
    """A size in decimal units, as disks are sold and downloads are counted: 13.5 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"
        size /= 1000
    return f"{size:.3g} TB"


def human_count(count: int) -> str:
    """A number of parameters: 1.12 B, 3.35 M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
