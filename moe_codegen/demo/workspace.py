"""The demo's output folder: its own, marked as such, and nobody else's."""

import json
import shutil
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint.staging import staged_path
from moe_codegen.errors import OutputError

MARKER = ".moe-codegen-demo.json"


class Workspace:
    """A folder that only the demo has written to, with what each part of it was made from.

    Raises:
        OutputError: the folder holds something that no demo made, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        marker = folder / MARKER
        try:
            if folder.exists() and not marker.exists() and any(folder.iterdir()):
                raise OutputError(f"{folder} is not empty and not a demo's; give another folder with --out")
            folder.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                marker.write_text("{}")
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise OutputError(
                f"{folder} cannot be written ({error.strerror}); give another folder with --out"
            ) from None

    def holds(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether the part `name` is complete and was made with exactly these settings."""
        return (self.folder / name).is_dir() and self._made().get(name) == settings

    def clear(self, name: str) -> Path:
        """The path of the part `name`, with what an earlier run left there removed, finished or not."""
        self._record(name, None)
        path = self.folder / name
        for leftover in (path, staged_path(path)):
            shutil.rmtree(leftover, ignore_errors=True)
        return path

    def finish(self, name: str, settings: dict[str, Any]) -> None:
        """Note that the part `name` is complete."""
        self._record(name, settings)

    def _made(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / MARKER).read_text())
        except json.JSONDecodeError:  # a run was killed while it wrote
            return {}

    def _record(self, name: str, settings: dict[str, Any] | None) -> None:
        made = self._made()
        made.pop(name, None)
        if settings is not None:
            made[name] = settings
        (self.folder / MARKER).write_text(json.dumps(made, indent=2))
