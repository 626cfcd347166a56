"""How every verb speaks: answers on standard output, everything about the work on standard error."""

import json
from typing import Any

from rich.console import Console

output = Console(highlight=False, soft_wrap=False)
messages = Console(stderr=True, highlight=False)


def print_json(record: dict[str, Any]) -> None:
    """One line of JSON on standard output, as a program wants to read it."""
    output.file.write(json.dumps(record, ensure_ascii=False) + "\n")
