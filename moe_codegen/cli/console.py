"""How every verb speaks: answers on standard output, everything about the work on standard error."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape

# Printed with `soft_wrap=True`, a line is not broken where the terminal ends, and can be copied.
output = Console(highlight=False)
messages = Console(stderr=True, highlight=False)


def show_warning(message: Warning | str, *where: Any, **rest: Any) -> None:
    """A warning without the line of code that gave it, in place of `warnings.showwarning`."""
    messages.print(f"[yellow]note:[/yellow] {escape(str(message))}", soft_wrap=True)


def print_json(record: dict[str, Any]) -> None:
    """One line of JSON on standard output, as a program wants to read it."""
    output.file.write(json.dumps(record) + "\n")
