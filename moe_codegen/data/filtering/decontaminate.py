"""`decontaminate`: drop every file that holds a prompt or a solution of a benchmark.

Files and patterns are compared in a normal form without case, white space, blank lines, quotes and comment markers, so
that another indentation or another comment style hides nothing. All patterns are looked for at once (Aho-Corasick).
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import merged
from moe_codegen.data.reading.files import digest
from moe_codegen.data.reading.hub import commit_of, load_rows
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, split_sound
from moe_codegen.errors import ConfigError, SourceError
from moe_codegen.settings import setting

_PROMPTS = ("prompt", "text")
_SOLUTIONS = ("canonical_solution", "canonical", "solution", "code")
_FILES = (".jsonl", ".jsonl.gz", ".parquet")
_NAMES = ("task_id", "name")
_REMOVED = b" \t\r\f\v#/*\"'`"
_LONG = 40  # characters of the normal form from which a pattern counts anywhere; a shorter one has to be whole lines
_TELLING_LINE = 50  # characters from which one line of a prompt gives it away


@dataclass(frozen=True)
class DecontaminateSettings:
    """Which benchmarks are looked for."""

    benchmarks: tuple[str, ...] = setting(
        (),
        "JSONL or Parquet files, folders of them, or Hub ids (owner/name or owner/name:config; their split `test`)",
        is_path=True,
    )

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ConfigError("no benchmark to look for; name files, folders or Hub ids: --benchmarks HumanEval.jsonl")


@dataclass(frozen=True)
class Pattern:
    """A text to look for, in the normal form, and the problem it comes from."""

    text: bytes
    problem: str
    kind: str  # prompt, prompt_line or solution


def decontaminate(
    source: Source, out: str | Path, settings: DecontaminateSettings, *, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Write the files of `source` that hold nothing of the benchmarks to `out`; returns the manifest.

    Raises `SourceError` where a benchmark cannot be read, or holds no prompt and no solution.
    """
    on_hub = [name for name in settings.benchmarks if not Path(name).exists() and _may_be_on_hub(name)]
    commits = {name: commit_of(name.partition(":")[0], "") for name in on_hub}
    patterns = benchmark_patterns(settings.benchmarks, commits)
    body, contents = partial(_decontaminate, patterns, commits), {"benchmarks": digest(patterns)}
    return run_stage("decontaminate", source, out, settings, body, contents=contents, num_proc=num_proc, quiet=quiet)


def _decontaminate(patterns: list[Pattern], commits: dict[str, str], stage: Stage) -> tuple[Record, list[Record]]:
    records = stage.map(OUTPUT, search_unit, patterns)
    found = Counter[str]()
    for record in records:
        found.update(record["problems"])
    summary = {
        "tally": merged(records).record(),
        **({"benchmark_commits": commits} if commits else {}),
        "patterns": len(patterns),
        "problems_found": dict(sorted(found.items())),
    }
    return summary, records


def normal_form(text: bytes) -> bytes:
    """Lower case, nothing but the code's own characters, one line end before, between and after the lines left."""
    lines = text.lower().translate(None, _REMOVED).split(b"\n")
    return b"\n" + b"\n".join(filter(None, lines)) + b"\n"


def benchmark_patterns(benchmarks: tuple[str, ...], commits: Mapping[str, str] | None = None) -> list[Pattern]:
    """The patterns of all the benchmarks, each text once; those of the Hub as of `commits`, else as they are now.

    Raises `SourceError` for a benchmark that cannot be read, or that holds no prompt and no solution.
    """
    found: dict[bytes, Pattern] = {}
    for benchmark in benchmarks:
        for name, rows in _read(benchmark, (commits or {}).get(benchmark, "")):
            if not all(isinstance(row, dict) for row in rows):
                raise SourceError(f"{name} should hold a JSON object on each line, with a prompt or a solution")
            patterns = list(_patterns(name, rows))
            if not patterns:
                raise SourceError(f"{name} has no column of prompts or solutions; looked for {_PROMPTS + _SOLUTIONS}")
            for pattern in patterns:
                found.setdefault(pattern.text, pattern)
    return list(found.values())


def _patterns(name: str, rows: list[dict[str, Any]]) -> Iterator[Pattern]:
    """Of each row the prompt, the solution, and the longest line of the prompt that no other row's prompt has."""
    prompts = [normal_form("\n".join(text for key in _PROMPTS for text in _texts(row, key)).encode()) for row in rows]
    occurrences = Counter(line for prompt in prompts for line in set(prompt.split(b"\n")))
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        problem = f"{name}:{next((row[key] for key in _NAMES if key in row), number)}"
        own = [line for line in prompt.split(b"\n") if len(line) >= _TELLING_LINE and occurrences[line] == 1]
        if prompt.strip():
            yield Pattern(_anchored(prompt), problem, "prompt")
        if own:
            yield Pattern(max(own, key=len), problem, "prompt_line")
        for key in _SOLUTIONS:
            for solution in map(normal_form, map(str.encode, _texts(row, key))):
                if solution.strip():
                    yield Pattern(_anchored(solution), problem, "solution")


def _texts(row: dict[str, Any], key: str) -> list[str]:
    """The texts of a column: none, one, or several where it is a list."""
    value = row.get(key) or []
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _anchored(text: bytes) -> bytes:
    return text.strip(b"\n") if len(text) >= _LONG else text


def _may_be_on_hub(benchmark: str) -> bool:
    return "/" in benchmark and not benchmark.startswith((".", "/"))


def _read(benchmark: str, commit: str) -> Iterator[tuple[str, list[Any]]]:
    path = Path(benchmark)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(_FILES))
        if not files:
            raise SourceError(f"{benchmark} holds no {', '.join(_FILES)} file")
    elif path.is_file():
        files = [path]
    elif _may_be_on_hub(benchmark):
        dataset, _, config = benchmark.partition(":")
        where = SourceSettings(config=config, split="test", revision=commit)
        yield benchmark, load_rows(dataset, where)
        return
    else:
        raise SourceError(f"benchmark {benchmark} does not exist")
    for file in files:
        try:
            yield file.name, _read_file(file)
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise SourceError(f"benchmark {file} cannot be read: {error}") from error
        except ValueError as error:
            raise SourceError(f"benchmark {file} is not JSON Lines: {error}") from error


def _read_file(file: Path) -> list[Any]:
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [json.loads(line) for line in text.split(b"\n") if line.strip()]


def search_unit(unit: Unit, number: int, folder: Path, patterns: list[Pattern]) -> Record:
    """Write the rows of a unit in which no pattern is found."""
    import ahocorasick_rs

    texts = [pattern.text for pattern in patterns]
    automaton = ahocorasick_rs.BytesAhoCorasick(texts, implementation=ahocorasick_rs.Implementation.ContiguousNFA)
    output = UnitOutput(folder, number, unit.layout.schema)
    problems = Counter[str]()
    for batch in unit.batches():
        sound, _, dropped = split_sound(batch)
        hits = {}
        for row, content in enumerate(sound.rows.column("content").to_pylist()):
            matches = automaton.find_matches_as_indexes(normal_form(content))
            if matches:
                hits[row] = patterns[matches[0][0]]
        problems.update(pattern.problem for pattern in hits.values())
        details = {row: {"problem": pattern.problem, "matched": pattern.kind} for row, pattern in hits.items()}
        kept = sound.rows.filter(~np.isin(np.arange(sound.rows.num_rows), list(hits)))
        output.keep(kept)
        output.drop([*dropped, *Dropped.of(sound, dict.fromkeys(hits, "benchmark"), details)])
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, kept.num_rows)
    return {**output.close(), "problems": dict(problems)}
