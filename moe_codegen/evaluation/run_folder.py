"""The folder of one evaluation run, which `execute`, `pass-at-k`, `compare` and the report read.

    OUT/
      run.json                         the model, settings, problems, speed and versions; see `RunRecord`
      {dataset}-{language}-{model}-{temperature}-reworded/      one for each language
        {problem}.json.gz              MultiPL-E's completions file
        {problem}.results.json.gz      MultiPL-E's result file, written when all samples of the problem have run
        outcomes.jsonl                 append-only: one line for each distinct program, with the kind of its failure
      loss.json, completion.json, routing.json      held-out files, see `held_out.measures`

A folder of completions made elsewhere has no `run.json`, and gets `outcomes.jsonl` and the result files.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from moe_codegen.checkpoint.staging import NO_SPACE
from moe_codegen.errors import OutputError, ResultError
from moe_codegen.evaluation.multipl_e import completion_files, result_files
from moe_codegen.whole_file import write_whole

RUN_FILE = "run.json"
MEASURES: dict[str, dict[str, type]] = {  # -> what its file holds, besides what each of them does
    "loss": {"losses": dict},
    "completion": {"completions": list},
    "routing": {"by_language": dict, "by_kind": dict},
}
_PARTS = {"model": dict, "settings": dict, "documents": dict, "versions": dict, "seconds": float}
OUTCOMES_FILE = "outcomes.jsonl"


@dataclass
class RunRecord:
    """`run.json`.

    Attributes:
        model: name, kind ("dense" or "mixture"), family, dtype, device, parameters {"total", "active"} and files
            {file: sha256}; num_experts and top_k of a mixture.
        settings: every setting of the run that its results depend on.
        problems: folder -> {"dataset", "language", "count", "sha256" of the rows, "names"}.
        generation: tokens, seconds and tokens_per_second of sampling, over all languages.
        execution: sandbox, and the version of each language's toolchain.
        versions: package -> version.
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Write it to `out`, whole or not at all."""
        write_whole(out / RUN_FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_record(out: Path) -> RunRecord | None:
    """The record of a run; None where there is none. Raises `ResultError` where it is damaged."""
    parts = dict.fromkeys((part.name for part in fields(RunRecord)), dict)
    advice = (
        "without it none can tell how the results beside it were made; restore it from a copy, or evaluate into "
        "another folder"
    )
    record = _read(out / RUN_FILE, parts, advice)
    return RunRecord(**{part: record[part] for part in parts}) if record else None


def read_measure(out: Path, name: str) -> dict[str, Any] | None:
    """One of the `MEASURES` of a folder; None where it has not been made. Raises `ResultError` where it is damaged."""
    path, advice = out / f"{name}.json", "remove it to have it made again"
    record = _read(path, _PARTS | MEASURES[name], advice)
    if record and record.get("measure") != name:
        raise ResultError(f"{path} holds no measured {name}; {advice}")
    return record


def _read(path: Path, parts: Mapping[str, type], advice: str) -> dict[str, Any] | None:
    """A JSON object with these parts, name -> type, one of them the model; None where there is no file."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        model = record["model"]
        unfit = [part for part, kind in parts.items() if not isinstance(record[part], kind)]
        if unfit or not (isinstance(model["name"], str) and isinstance(model["files"], dict)):
            raise TypeError(f"{', '.join(unfit) or 'name or files of the model'} of another type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} is damaged or not of an evaluation ({error!r}); {advice}") from error
    return record


def check_writable(out: Path) -> None:
    """Refuse a folder, which need not exist yet, where nothing can be written; `OutputError`."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise OutputError(f"{out} cannot be written, for {above} is no folder that you may write to; give another")


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """A context in which files are written to `out`; what `check_writable` refuses, or a full disk is `OutputError`."""
    check_writable(out)
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OutputError(
            f"no space left for {out}: {error.strerror}. Free some and run the same command again; it goes on where it "
            "was"
        ) from error


def claim(out: Path, files: Mapping[str, str]) -> RunRecord | None:
    """Make `out` the folder of a model with these files (name -> sha256), if it is not yet; returns its run's record.

    Raises:
        OutputError: it holds results of other model files, or something that is no evaluation.
    """
    run = read_record(out)
    records = [found["model"] for name in MEASURES if (found := read_measure(out, name)) is not None]
    records += [run.model] if run else []
    if any(record["files"] != files for record in records):
        raise OutputError(f"{out} holds an evaluation of other model files; give another folder")
    is_empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not (records or is_empty or (out.is_dir() and any(out.glob("*/*.json.gz")))):
        raise OutputError(f"{out} is not empty and holds no evaluation; give another folder, or remove it first")
    out.mkdir(parents=True, exist_ok=True)
    return run


def language_folders(out: Path) -> list[Path]:
    """The folders of MultiPL-E files of a run, or `out` alone where it is itself one.

    Raises `ResultError` where there is none.
    """
    if not out.is_dir():
        raise ResultError(f"{out} is no folder; expected a run, or a folder with MultiPL-E's files")
    children = sorted(child for child in out.iterdir() if child.is_dir())
    folders = [folder for folder in (out, *children) if _has_programs(folder)]
    if not folders:
        raise ResultError(f"{out} holds no completions and no results of MultiPL-E, nor does any folder in it")
    return folders


def _has_programs(folder: Path) -> bool:
    ours = {Path(RUN_FILE).stem, *MEASURES}  # which look like uncompressed completions
    return bool({*completion_files(folder), *result_files(folder)} - ours)
