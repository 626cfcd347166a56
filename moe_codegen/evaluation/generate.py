"""One model on the problems of several languages: generation and execution side by side, each resumed where it was."""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moe_codegen.errors import OutputError, ResumeError
from moe_codegen.evaluation.batched_generation import Batch, Writer
from moe_codegen.evaluation.execution import Kind
from moe_codegen.evaluation.execution.bench import Bench, OnProgress, finish, open_bench
from moe_codegen.evaluation.execution.folder import FolderJudge
from moe_codegen.evaluation.languages import find_language
from moe_codegen.evaluation.loaded_model import LoadedModel, describe_versions, load
from moe_codegen.evaluation.multipl_e import (
    Completions,
    completion_files,
    folder_name,
    read_completions,
    write_completions,
)
from moe_codegen.evaluation.problems import Problem, read_problems
from moe_codegen.evaluation.run_folder import RunRecord, claim, writable
from moe_codegen.evaluation.settings import ExecutionSettings, ModelSettings, ProblemSettings, SamplingSettings
from moe_codegen.settings import as_record


@dataclass(frozen=True)
class GenerationReport:
    """A run that is done.

    Attributes:
        folders: of each language, MultiPL-E's files.
        record: what `run.json` says.
        counts: folder -> how often each kind of outcome occurred; empty where nothing was executed.
    """

    folders: list[Path]
    record: RunRecord
    counts: dict[Path, Counter[Kind]]


def generate(
    model: str | Path | LoadedModel,
    out: str | Path,
    problems: ProblemSettings | None = None,
    sampling: SamplingSettings | None = None,
    model_settings: ModelSettings | None = None,
    execution: ExecutionSettings | None = None,
    *,
    name: str = "",
    execute: bool = True,
    bench: Bench | None = None,
    on_progress: OnProgress = lambda title, done, total: None,
) -> GenerationReport:
    """Have a model complete the problems, and judge its programs while it writes the next ones.

    The same call after a kill goes on where it was, to the same results; one with more samples or a higher limit adds
    to what there is.

    Args:
        model: dense or mixture, a folder or Hub id, as `load_model` takes it; or one that is loaded.
        out: the run's folder; its files are described in `run_folder`.
        problems, sampling, model_settings, execution: None takes the defaults.
        name: the model's, in folders and tables; empty: its folder's.
        execute: False only generates, and needs no sandbox and no compiler.
        bench: where programs are judged; None opens one as `execution` says.
        on_progress: called with what is going on, how much is done, and of how much.

    Raises:
        ProblemError, ToolchainError, SandboxError, CheckpointError, ConfigError: before anything is generated.
        ResumeError: `out` was begun with another model, other problems or other settings.
        InfrastructureError: a program could not be judged; everything else is.
    """
    problems, sampling = problems or ProblemSettings(), sampling or SamplingSettings()
    model_settings, execution = model_settings or ModelSettings(), execution or ExecutionSettings()
    languages = [find_language(name) for name in dict.fromkeys(problems.languages)]
    rows = {language.name: _problems(problems, language.name) for language in languages}
    out, opened = Path(out), contextlib.nullcontext(bench)
    with writable(out), open_bench(languages, execution) if execute and bench is None else opened as bench:
        loaded = load(model, model_settings, name)
        writer = Writer(loaded.model, loaded.tokenizer, sampling)
        writer.check([problem for some in rows.values() for problem in some])
        record = RunRecord(
            model=loaded.record,
            settings={"dataset": problems.dataset, "limit": problems.limit, **as_record(sampling)},
            versions=describe_versions(),
        )
        record = _begin(out, record)
        folders, judges, written = {}, {}, {}
        for language in languages:
            folder = out / folder_name(problems.dataset, language.name, loaded.name, sampling.temperature)
            folder.mkdir(exist_ok=True)
            folders[language.name] = folder
            record.problems[folder.name] = _identity(problems.dataset, language.name, rows[language.name])
            if bench is not None:
                judges[folder] = bench.judge_for(folder, language)
                record.execution = _execution(bench, record.execution)
        record.write(out)
        for language in languages:
            folder = folders[language.name]
            written[folder] = _generate(
                writer,
                rows[language.name],
                folder,
                sampling,
                model_settings.batch_size,
                _Progress(record, out, judges.get(folder), on_progress, f"{language.title}: writing"),
            )
        counts = finish(bench, judges, written, on_progress) if bench is not None else {}
    return GenerationReport(list(folders.values()), record, counts)


@dataclass
class _Progress:
    """What is to be done with each batch that is written, besides keeping it."""

    record: RunRecord
    out: Path
    judge: FolderJudge | None
    on_progress: OnProgress
    title: str

    def batch(self, batch: Batch, completions: Sequence[Completions], done: int, total: int) -> None:
        """Hand the programs in, and account for the time."""
        generation = self.record.generation
        tokens, seconds = generation.get("tokens", 0) + batch.tokens, generation.get("seconds", 0.0) + batch.seconds
        self.record.generation = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        self.record.write(self.out)
        self.submit(completions)
        self.on_progress(self.title, done, total)

    def submit(self, completions: Sequence[Completions]) -> None:
        """Hand programs in, if they are to be executed."""
        if self.judge is not None:
            for each in completions:
                self.judge.submit(each)


def _generate(
    writer: Writer,
    problems: Sequence[Problem],
    folder: Path,
    sampling: SamplingSettings,
    batch_size: int,
    progress: _Progress,
) -> list[Completions]:
    """Write what is missing of the samples of `problems`; returns the completions of all."""
    current = {completions.name: completions for completions in _started(problems, folder, sampling)}
    progress.submit([each for each in current.values() if each.completions])
    total = len(problems) * sampling.num_samples
    done = sum(len(each.completions) for each in current.values())
    for requests in _batches(problems, current, sampling.num_samples, batch_size):
        batch = writer.write(requests)
        for (problem, _), text in zip(requests, batch.texts, strict=True):
            before = current[problem.name]
            current[problem.name] = replace(before, completions=(*before.completions, text))
        changed = [current[name] for name in dict.fromkeys(problem.name for problem, _ in requests)]
        for completions in changed:
            write_completions(folder, completions)
        done += len(requests)
        progress.batch(batch, changed, done, total)
    return list(current.values())


def _batches(
    problems: Sequence[Problem], current: dict[str, Completions], num_samples: int, batch_size: int
) -> Iterator[list[tuple[Problem, int]]]:
    """The (problem, sample) that are missing, some at a time, in the order of the problems."""
    missing = [
        (problem, sample)
        for problem in problems
        for sample in range(len(current[problem.name].completions), num_samples)
    ]
    for start in range(0, len(missing), batch_size):
        yield missing[start : start + batch_size]


def _started(problems: Sequence[Problem], folder: Path, sampling: SamplingSettings) -> Iterator[Completions]:
    """The completions of each problem as a run before this one left them, or none yet."""
    files = completion_files(folder)
    for problem in problems:
        fresh = Completions(
            name=problem.name,
            language=problem.language,
            prompt=problem.prompt,
            tests=problem.tests,
            completions=(),
            stop_tokens=problem.stop_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
        )
        if problem.name not in files:
            yield fresh
            continue
        found = read_completions(files[problem.name])
        if replace(found, completions=(), extra={}) != fresh or len(found.completions) > sampling.num_samples:
            raise ResumeError(
                f"{files[problem.name]} holds completions of another prompt or more than {sampling.num_samples} of "
                "them; give another OUT"
            )
        yield found


def _problems(settings: ProblemSettings, language: str) -> list[Problem]:
    problems = read_problems(settings.dataset, language, settings.problems)
    return problems[: settings.limit] if settings.limit else problems


def _begin(out: Path, record: RunRecord) -> RunRecord:
    """The record to go on with: that of a started run, if it is of the same model and settings."""
    started = claim(out, record.model["files"])
    if started is None:
        if any(out.glob("*/*.json.gz")):
            raise OutputError(f"{out} holds completions of another run and no run.json; give another folder")
        return record
    now = json.loads(json.dumps({"model": record.model, "settings": record.settings}))
    for part, others in (("model", "another model"), ("settings", "other settings")):
        before, after = getattr(started, part), now[part]
        changed = [key for key in {**before, **after} if not _may_follow(key, before.get(key), after.get(key))]
        if changed:
            raise ResumeError(
                f"{out} was begun with {others} ({', '.join(changed)}); give another folder, or what it was begun with"
            )
    return replace(started, settings=record.settings, versions=record.versions)


def _may_follow(key: str, before: Any, now: Any) -> bool:
    """Whether a run goes on where `key` is `now` what it was not before."""
    if key in ("num_samples", "limit"):  # noise is keyed, so that more are only added; no limit is the highest
        return (now or math.inf) >= (before or math.inf)
    return key in ("device", "files") or before == now


def _identity(dataset: str, language: str, problems: Sequence[Problem]) -> dict[str, Any]:
    text = json.dumps([asdict(problem) for problem in problems])
    return {
        "dataset": dataset,
        "language": language,
        "count": len(problems),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "names": [problem.name for problem in problems],
    }


def _execution(bench: Bench, before: dict[str, Any]) -> dict[str, Any]:
    toolchain = {**before.get("toolchain", {}), **bench.toolchain}
    return {"sandbox": bench.sandbox.version(), "memory_mb": bench.settings.memory_mb, "toolchain": toolchain}
