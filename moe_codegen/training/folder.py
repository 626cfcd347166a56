"""The folder of a run: its run file, history and checkpoints, then the model, and last a summary: it is finished."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from moe_codegen.errors import OutputError, ResumeError
from moe_codegen.settings import as_record, path_fields
from moe_codegen.training.runfile import write_run
from moe_codegen.training.settings import FREE_TO_CHANGE, TrainSettings
from moe_codegen.whole_file import write_whole, writing

STAGED = ".partial"  # where a checkpoint, and in the end the model, is written until it is whole


class RunFolder:
    """`out` as a run sees it.

    Raises:
        OutputError: something else is there, or nothing can be written.
        ResumeError: a run of other settings, or of other data, is there.

    Args:
        inputs: what `settings` name, as `identify` says.
    """

    def __init__(self, out: str | Path, verb: str, settings: TrainSettings, inputs: Mapping[str, str]) -> None:
        self.path = Path(out)
        self.verb, self.settings, self.inputs = verb, settings, inputs
        self.history = self.path / "history.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self._check()

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        return read_summary(self.path)

    @property
    def last_checkpoint(self) -> str | None:
        """Where a run that was stopped goes on from."""
        return get_last_checkpoint(self.checkpoints) if self.checkpoints.is_dir() else None

    def begin(self) -> None:
        """Write what is being run."""
        with writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_run(self.settings, self.path / "run.toml")
            self._write("started.json", self._record())

    @contextmanager
    def ending(self) -> Iterator[None]:
        """A context in which what the run made is written; what cannot be is an `OutputError`."""
        advice = f"The last checkpoint is {self.last_checkpoint}; free some space and run the same command again"
        try:
            with writing(self.path, advice):
                yield
        finally:
            shutil.rmtree(self.path / STAGED, ignore_errors=True)

    def finish(self, save_model: Callable[[Path], None], summary: dict[str, Any]) -> None:
        """Write the model, its configuration last, and then the summary."""
        staged = self.path / STAGED
        shutil.rmtree(staged, ignore_errors=True)
        save_model(staged)
        for file in sorted(staged.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(self.path / file.name)
        staged.rmdir()
        self._write("summary.json", {**self._record(), **summary})
        (self.path / "started.json").unlink()

    def _check(self) -> None:
        started = _read(self.path / "started.json") or self.summary
        if started is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise OutputError(f"{self.path} is not empty and holds no run of ours; give a new or empty folder")
            above = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
            if not (above.is_dir() and os.access(above, os.W_OK)):
                raise OutputError(f"{self.path} cannot be made, for {above} is no folder that you may write to")
            return
        differing = _differing(started, self._record(), but={*FREE_TO_CHANGE, *path_fields(self.settings)})
        if differing:
            raise ResumeError(
                f"{self.path} holds a run that differs in {', '.join(differing)}; repeat the command it was started "
                "with, give another folder, or delete this one"
            )

    def _record(self) -> dict[str, Any]:
        settings = json.loads(json.dumps(as_record(self.settings)))
        return {"verb": self.verb, "settings": settings, "inputs": dict(self.inputs)}

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_whole(self.path / name, (json.dumps(record, indent=1) + "\n").encode())


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    return _read(Path(folder, "summary.json"))


def _differing(started: Mapping[str, Any], mine: Mapping[str, Any], but: Set[str]) -> list[str]:
    """What two runs differ in: settings, other than those in `but`, and the content of what settings name."""
    if started["verb"] != mine["verb"]:
        return ["verb"]

    def changed(part: str) -> list[str]:
        before, now = started.get(part, {}), mine[part]
        return [name for name in {**before, **now} if before.get(name) != now.get(name)]

    return [name for name in changed("settings") if name not in but] + [
        f"what {name} holds" for name in changed("inputs")
    ]


def _read(path: Path) -> dict[str, Any] | None:
    """What `RunFolder` wrote to `path`, or None. Raises `OutputError` where something else is there."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        if not (isinstance(record["verb"], str) and isinstance(record["settings"], dict)):
            raise TypeError("verb or settings are of another type")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} is damaged or not of a run of ours ({error!r}); give another folder, or remove this one"
        ) from error
