"""A pass of a verb over a source: parallel over units, safe to kill, the same bytes whatever the number of workers.

Everything is made in `OUT/.work`. A unit's record is written after its files and means that it need not be done again;
a unit without a record is done anew, over whatever a killed run left. Results depend on the unit alone. At the end the
files move to `OUT`, then the manifest is written, and only then does `OUT` look finished.
"""

import fcntl
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from moe_codegen.data.passes.card import folder_splits, write_card
from moe_codegen.data.passes.progress import Progress
from moe_codegen.data.passes.tally import Record as Record
from moe_codegen.data.passes.tally import Tally
from moe_codegen.data.passes.workers import Mapper, map_units
from moe_codegen.data.reading.files import as_text, digest
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.errors import ConfigError, OutputError, ResumeError, SourceError
from moe_codegen.settings import as_record
from moe_codegen.whole_file import write_whole

MANIFEST = "manifest.json"
_OURS = {"verb", "version", "settings", "contents", "units", "history"}  # keys that every manifest of ours has
WORK = ".work"
RUN = "run.json"  # in WORK: what a started run is of
OUTPUT = "output"  # the phase whose files become the verb's output
UnitFunction = Callable[..., Record]  # (unit, number, folder, *arguments) -> record


class Stage:
    """One verb's run from a source into a folder; `run_stage` makes it, a verb's body calls `map`."""

    def __init__(
        self,
        verb: str,
        source: Source,
        out: Path,
        settings: Any,
        contents: Mapping[str, str],
        num_proc: int,
        quiet: bool,
        mapper: Mapper,
    ) -> None:
        self.verb, self.source, self.out, self.settings, self.contents = verb, source, out, settings, dict(contents)
        self.num_proc, self.quiet, self.mapper = num_proc, quiet, mapper
        self.work = out / WORK
        self.units = [[unit.name, unit.nbytes, unit.identity] for unit in source.units]
        self.modified = [when for unit in source.units for when in unit.modified]

    def map(
        self,
        phase: str,
        function: UnitFunction,
        *arguments: Any,
        over: Sequence[Any] | None = None,
        total: int | None = None,
    ) -> list[Record]:
        """`function(unit, number, folder, *arguments)` for every unit not done before; the records in unit order.

        `over` are other things than the source's units to do one at a time, each determined by the source alone.

        `function` is of a module's top level; it writes its files under `folder` and counts with
        `progress.advance`. `total` bytes are expected in all; by default those of the source.
        """
        folder = self.work / phase
        records = self.work / "records" / phase
        records.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        units = list(enumerate(self.source.units if over is None else over))
        left = [(number, unit) for number, unit in units if not record_path(records, number).exists()]
        jobs = [(function, unit, number, folder, records, arguments) for number, unit in left]
        nbytes = self.source.nbytes if total is None else total
        shown: AbstractContextManager = nullcontext() if self.quiet else Progress(f"{self.verb}: {phase}", nbytes)
        with shown as progress:
            self.mapper(_do_unit, jobs, self.num_proc, progress)
        return [json.loads(record_path(records, number).read_text()) for number, _ in units]

    def claim(self) -> bool:
        """Take `out` for this run; True if it is already finished. Raises `OutputError` or `ResumeError`."""
        mine = _fingerprint(self.verb, as_record(self.settings), self.contents, self.units)
        mine["modification times"] = digest(self.modified)
        started = self.work / RUN
        manifest = read_manifest(self.out)
        if manifest is not None:
            theirs = _fingerprint(*(manifest[key] for key in ("verb", "settings", "contents", "units")))
            # Not the times themselves: a copy of all that was made, elsewhere, is the same.
            if max(self.modified, default=0) > (self.out / MANIFEST).stat().st_mtime_ns:
                theirs["modification times"] = "before"
        elif started.exists():
            theirs = json.loads(started.read_text())
        else:
            theirs = {}
        if differing := sorted(key for key in theirs if mine.get(key) != theirs[key]):
            raise ResumeError(
                f"{self.out} holds a run that differs in {', '.join(differing)}; "
                "repeat the command it was started with, give another OUT, or delete this one"
            )
        if theirs:
            return manifest is not None
        if any(child.name != WORK for child in self.out.iterdir()):
            raise OutputError(f"{self.out} is not empty and holds no run of ours; give an empty or new folder")
        write_whole(started, json.dumps(mine).encode())
        return False

    def finish(self, summary: Record, records: list[Record]) -> Record:
        """Move the phase `OUTPUT` to `out`, with a dataset card where it is a dataset, and write the manifest."""
        if (tally := Tally(summary.get("tally"))).total(kept=False)[0] and not tally.total(kept=True)[0]:
            reasons = ", ".join(summary["tally"]).replace("_", " ")
            warnings.warn(f"{self.verb} has kept no file of {self.source.name}; why they went: {reasons}", stacklevel=2)
        made = self.work / OUTPUT
        shards = [shard for record in records for shard in record.get("shards", ())]
        manifest = {
            "verb": self.verb,
            "version": metadata.version("moe-codegen"),
            "settings": as_record(self.settings),
            "contents": self.contents,
            "source": as_text(Path(self.source.name).absolute().name),
            "units": self.units,
            "rows": sum(shard["rows"] for shard in shards),
            "shards": shards,
            **summary,
            "history": _history(self.source.name),
        }
        if shards:
            write_card(made, {"default": folder_splits(manifest)}, [manifest])
        for path in sorted(made.rglob("*")):
            if path.is_file():
                target = self.out / path.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        written = self.work / MANIFEST
        written.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))
        newest = max([time.time_ns(), *self.modified])  # clocks differ, and archives hold files from the future
        os.utime(written, ns=(newest, newest))
        os.replace(written, self.out / MANIFEST)
        return manifest


def run_stage(
    verb: str,
    source: Source,
    out: str | Path,
    settings: Any,
    body: Callable[[Stage], tuple[Record, list[Record]]],
    *,
    contents: Mapping[str, str] | None = None,
    num_proc: int = 1,
    quiet: bool = True,
    mapper: Mapper = map_units,
) -> Record:
    """Run `body` (which returns a summary and the records of the output phase) and return the manifest.

    `contents` has a hash of what lies behind each setting that is only a name, such as a tokenizer's folder.

    `mapper` does the units: in processes of this machine, or on a cluster (`cluster.DatatroveMapper`).

    A run that was killed goes on where it was; a finished one returns at once. Raises `OutputError` where `out` cannot
    be written, lies in the source or holds something else, `ResumeError` where it holds a run of other settings or
    another source.
    """
    out = Path(out)
    if out.resolve().is_relative_to(Path(source.name).resolve()) and Path(source.name).is_dir():
        raise OutputError(
            f"{out} lies in {as_text(source.name)} and would be read as part of it; give a folder elsewhere"
        )
    goes_on = (out / WORK / RUN).exists()
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(out / WORK / "lock", timeout=0):
            with _flock(out / WORK, fcntl.LOCK_EX):
                pass  # what a killed run's last workers are still writing is theirs until they are done
            stage = Stage(verb, source, out, settings, contents or {}, num_proc, quiet, mapper)
            manifest = read_manifest(out) if stage.claim() else stage.finish(*body(stage))
    except ConfigError:
        if not goes_on:
            shutil.rmtree(out / WORK)  # such settings end here each time, and corrected ones are not to be refused
        raise
    except filelock.Timeout as error:
        raise OutputError(f"another run is writing to {out}; wait for it, or give another folder") from error
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(out):
            raise SourceError(f"{as_text(error.filename)} cannot be used: {error.strerror}") from error
        raise OutputError(f"{out} cannot be written: {error}") from error
    except Exception as error:
        if type(error) is not Exception:  # as tokenizers has it of a full disk
            raise
        raise OutputError(f"{out} cannot be written: {error}") from error
    shutil.rmtree(out / WORK)
    assert manifest is not None
    return manifest


def read_manifest(folder: str | Path) -> Record | None:
    """The manifest of a finished folder of ours, or None; others too call a file so."""
    path = Path(folder, MANIFEST)
    try:
        manifest = json.loads(path.read_text()) if path.is_file() else None
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and manifest.keys() >= _OURS else None


def _do_unit(
    function: UnitFunction, unit: Unit, number: int, folder: Path, records: Path, arguments: tuple[Any, ...]
) -> None:
    with _flock(records.parents[1], fcntl.LOCK_SH):
        record = function(unit, number, folder, *arguments)
        path = record_path(records, number)
        path.with_suffix(".part").write_text(json.dumps(record))
        os.replace(path.with_suffix(".part"), path)


@contextmanager
def _flock(work: Path, kind: int) -> Iterator[None]:
    """Units share this lock while they are done; whoever wants it alone waits for them."""
    with (work / "units").open("a") as file:
        fcntl.flock(file, kind)
        yield


def record_path(records: Path, number: int) -> Path:
    """Where the record of a unit lies once it is done."""
    return records / f"{number:05d}.json"


def _fingerprint(verb: str, settings: Record, contents: Mapping[str, str], units: list[Any]) -> Record:
    """What has to stay as it was for a run to be the same, under the names by which a difference is told."""
    behind = {f"contents of {name}": value for name, value in contents.items()}
    return {"verb": verb, **settings, **behind, "source": units}


def _history(source: str) -> list[Record]:
    """What was done to the source before: its manifests, oldest first, without their lists of shards."""
    manifest = read_manifest(source)
    if manifest is None:
        above = read_manifest(Path(source).parent) or {}
        inside = any(shard["name"].startswith(f"{Path(source).name}/") for shard in above.get("shards", ()))
        manifest = above if inside else None
    if manifest is None:
        return []
    short = {key: value for key, value in manifest.items() if key not in ("history", "shards", "units")}
    return [*manifest["history"], short]
