"""`decontaminate`: drop every file that holds a prompt or a solution of a benchmark.

Files and patterns are compared in a normal form without case, white space, blank lines, quotes and comment markers, so
that another indentation or another comment style hides nothing. All patterns are looked for at once (Aho-Corasick).
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import merged
from moe_codegen.data.reading.hub import load_stream
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import Dropped, split_sound
from moe_codegen.errors import ConfigError, SourceError
from moe_codegen.settings import setting

_PROMPTS = ("prompt", "text")
_SOLUTIONS = ("canonical_solution", "canonical", "solution", "code")
_NAMES = ("task_id", "name")
_REMOVED = b" \t\r\f\v#/*\"'`"
_LONG = 40  # characters of the normal form from which a pattern counts anywhere; a shorter one has to be whole lines
_TELLING_LINE = 50  # characters from which one line of a prompt gives it away


@dataclass(frozen=True)
class DecontaminateSettings:
    """Which benchmarks are looked for."""

    benchmarks: tuple[str, ...] = setting(
        (), "JSONL files, folders of them, or Hub ids (owner/name or owner/name:config)", is_path=True
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
    return run_stage("decontaminate", source, out, settings, _decontaminate, num_proc=num_proc, quiet=quiet)


def _decontaminate(stage: Stage) -> tuple[Record, list[Record]]:
    patterns = benchmark_patterns(stage.settings.benchmarks)
    records = stage.map(OUTPUT, search_unit, patterns)
    found = Counter[str]()
    for record in records:
        found.update(record["problems"])
    summary = {
        "tally": merged(records).record(),
        "patterns": len(patterns),
        "problems_found": dict(sorted(found.items())),
    }
    return summary, records


def normal_form(text: bytes) -> bytes:
    """Lower case, nothing but the code's own characters, one line end before, between and after the lines left."""
    lines = text.lower().translate(None, _REMOVED).split(b"\n")
    return b"\n" + b"\n".join(filter(None, lines)) + b"\n"


def benchmark_patterns(benchmarks: tuple[str, ...]) -> list[Pattern]:
    """The patterns of all the benchmarks, each text once.

    Raises `SourceError` for a benchmark that cannot be read, or that holds no prompt and no solution.
    """
    found: dict[bytes, Pattern] = {}
    for benchmark in benchmarks:
        for name, rows in _read(benchmark):
            patterns = list(_patterns(name, rows))
            if not patterns:
                raise SourceError(f"{name} has no column of prompts or solutions; looked for {_PROMPTS + _SOLUTIONS}")
            for pattern in patterns:
                found.setdefault(pattern.text, pattern)
    return list(found.values())


def _patterns(name: str, rows: list[dict[str, Any]]) -> Iterator[Pattern]:
    """Of each row the prompt, the solution, and the longest line of the prompt that no other row's prompt has."""
    prompts = [normal_form("\n".join(str(row[key]) for key in _PROMPTS if row.get(key)).encode()) for row in rows]
    occurrences = Counter(line for prompt in prompts for line in set(prompt.split(b"\n")))
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        problem = f"{name}:{next((row[key] for key in _NAMES if key in row), number)}"
        own = [line for line in prompt.split(b"\n") if len(line) >= _TELLING_LINE and occurrences[line] == 1]
        if prompt.strip():
            yield Pattern(_anchored(prompt), problem, "prompt")
        if own:
            yield Pattern(max(own, key=len), problem, "prompt_line")
        for key in _SOLUTIONS:
            if row.get(key) and normal_form(row[key].encode()).strip():
                yield Pattern(_anchored(normal_form(row[key].encode())), problem, "solution")


def _anchored(text: bytes) -> bytes:
    return text.strip(b"\n") if len(text) >= _LONG else text


def _read(benchmark: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    path = Path(benchmark)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith((".jsonl", ".jsonl.gz")))
        if not files:
            raise SourceError(f"{benchmark} holds no .jsonl file")
    elif path.is_file():
        files = [path]
    elif "/" in benchmark and not benchmark.startswith((".", "/")):
        yield benchmark, _read_hub(benchmark)
        return
    else:
        raise SourceError(f"benchmark {benchmark} does not exist")
    for file in files:
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        try:
            yield file.name, [json.loads(line) for line in text.split(b"\n") if line.strip()]
        except ValueError as error:
            raise SourceError(f"benchmark {file} is not JSON Lines: {error}") from error


def _read_hub(benchmark: str) -> list[dict[str, Any]]:
    dataset, _, config = benchmark.partition(":")
    return [dict(row) for row in load_stream(dataset, SourceSettings(config=config, split="test"))]


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
