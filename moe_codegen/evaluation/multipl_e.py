"""MultiPL-E's own files, read and written so that its scripts and ours can share a folder.

`{name}.json.gz` holds the completions of one problem, `{name}.results.json.gz` what became of them, and the folder is
called `{dataset}-{language}-{model, no hyphens}-{temperature}-reworded`.
"""

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_codegen.errors import ConfigError, ResultError
from moe_codegen.settings import settings_from
from moe_codegen.whole_file import write_whole

OUTPUT_CHARACTERS = 2048  # of each of stdout and stderr that a result keeps
_COMPLETIONS, _RESULTS = (".json.gz", ".json"), (".results.json.gz", ".results.json")
_METADATA = ("name", "language", "temperature", "top_p", "max_tokens", "prompt", "tests", "stop_tokens")


@dataclass(frozen=True)
class Completions:
    """The completions of one problem, in the order of their samples.

    Attributes:
        extra: fields of the file that are none of MultiPL-E's; written back as they were.
    """

    name: str
    language: str
    prompt: str
    tests: str
    completions: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    temperature: float
    top_p: float
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def program(self, completion: str) -> str:
        """The text that is compiled and run."""
        return f"{self.prompt}{completion}\n{self.tests}"

    @property
    def programs(self) -> list[str]:
        """The text of each sample."""
        return [self.program(completion) for completion in self.completions]

    def record(self) -> dict[str, Any]:
        """The file's content."""
        values = {key: getattr(self, key) for key in (*_METADATA[:-1], "completions", "stop_tokens")}
        return values | dict(self.extra)


@dataclass(frozen=True)
class Result:
    """What became of one program, in MultiPL-E's words.

    Attributes:
        program: the whole text.
        timestamp: seconds since 1970 at which it had run.
        stdout, stderr: their first `OUTPUT_CHARACTERS`.
        exit_code: negative for a signal, -1 where time ran out.
        status: OK, Timeout, SyntaxError or Exception; in JavaScript also AssertionError and ReferenceError.
    """

    program: str
    timestamp: int
    stdout: str
    stderr: str
    exit_code: int
    status: str

    @property
    def passed(self) -> bool:
        """Whether MultiPL-E counts it as passed."""
        return self.status == "OK" and self.exit_code == 0


@dataclass(frozen=True)
class Results:
    """The results of one problem."""

    language: str
    results: tuple[Result, ...]

    @property
    def num_passed(self) -> int:
        """How many samples passed."""
        return sum(result.passed for result in self.results)


def folder_name(dataset: str, language: str, model: str, temperature: float) -> str:
    """The folder MultiPL-E's scripts expect; hyphens and slashes of the model's name become underscores."""
    return f"{dataset}-{language}-{model.replace('-', '_').replace('/', '_')}-{temperature}-reworded"


def parse_folder_name(name: str) -> tuple[str, str] | None:
    """The dataset and language of a folder so named; None for another name."""
    parts = name.split("-")
    return (parts[0], parts[1]) if len(parts) >= 5 and parts[-1] == "reworded" else None


def completion_files(folder: Path) -> dict[str, Path]:
    """Problem -> its completions file, in the order of the names."""
    return _files(folder, _COMPLETIONS, but=_RESULTS)


def result_files(folder: Path) -> dict[str, Path]:
    """Problem -> its result file, in the order of the names."""
    return _files(folder, _RESULTS)


def read_completions(path: Path) -> Completions:
    """One completions file. Raises `ResultError`, naming it, where it is damaged or lacks a field."""
    record = _read(path)
    try:
        values = {key: record.pop(key) for key in (*_METADATA, "completions")}
        return settings_from(Completions, {**values, "extra": record}, "it")
    except (ConfigError, KeyError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ResultError(f"{path} is no completions file of MultiPL-E: {why}") from error


def write_completions(folder: Path, completions: Completions) -> Path:
    """Write `{name}.json.gz`, whole or not at all."""
    path = folder / f"{completions.name}{_COMPLETIONS[0]}"
    _write(path, json.dumps(completions.record()))
    return path


def read_results(path: Path) -> Results:
    """One result file. Raises `ResultError`, naming it, where it is damaged or lacks a field."""
    record = _read(path)
    try:
        return Results(record["language"], tuple(Result(**one) for one in record["results"]))
    except (KeyError, TypeError) as error:
        raise ResultError(f"{path} is no result file of MultiPL-E: {error}") from error


def write_results(folder: Path, completions: Completions, results: list[Result]) -> Path:
    """Write `{name}.results.json.gz`, whole or not at all."""
    metadata = completions.record()
    del metadata["completions"]
    path = folder / f"{completions.name}{_RESULTS[0]}"
    _write(path, json.dumps({**metadata, "results": [vars(result) for result in results]}, indent=2))
    return path


def _files(folder: Path, suffixes: tuple[str, ...], but: tuple[str, ...] = ()) -> dict[str, Path]:
    if not folder.is_dir():
        raise ResultError(f"{folder} is no folder; expected one with MultiPL-E's files")
    found = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), None)
        if suffix and not path.name.endswith(but):
            found[path.name.removesuffix(suffix)] = path
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        record = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError) as error:
        raise ResultError(f"{path} is damaged ({error}); remove it to have it made again") from error
    if not isinstance(record, dict):
        raise ResultError(f"{path} is damaged: it holds no JSON object; remove it to have it made again")
    return record


def _write(path: Path, text: str) -> None:
    buffer = io.BytesIO()
    # Without the time in its header the same content is the same file.
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(text.encode())
    write_whole(path, buffer.getvalue())
