"""Execute completions that are already written: any folder of MultiPL-E's files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_codegen.errors import InfrastructureError, ResultError
from moe_codegen.evaluation.execution.executor import Executor
from moe_codegen.evaluation.execution.folder import FolderJudge
from moe_codegen.evaluation.execution.outcome import Kind
from moe_codegen.evaluation.languages import Language, check_tools, find_language
from moe_codegen.evaluation.multipl_e import Completions, completion_files, read_completions
from moe_codegen.evaluation.run_folder import language_folders, writable
from moe_codegen.evaluation.sandbox import Sandbox, open_sandbox
from moe_codegen.evaluation.settings import ExecutionSettings

# on_progress(title, done, total)
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Bench:
    """Where programs are judged, and under which conditions.

    Attributes:
        toolchain: command -> version.
    """

    executor: Executor
    sandbox: Sandbox
    toolchain: dict[str, str]
    settings: ExecutionSettings

    def judge_for(self, folder: Path, language: Language) -> FolderJudge:
        """The judge of one folder."""
        commands = [tool.command for tool in language.tools]
        conditions = {  # what an outcome of this language depends on, besides the program
            "sandbox": self.sandbox.name,
            "memory_mb": self.settings.memory_mb,
            "seconds": language.run_seconds,
            "toolchain": {command: self.toolchain[command] for command in commands if command in self.toolchain},
        }
        return FolderJudge(folder, self.executor, conditions)


@contextmanager
def open_bench(languages: Iterable[Language], settings: ExecutionSettings) -> Iterator[Bench]:
    """Check tools and sandbox, and start the workers.

    Raises:
        ToolchainError, SandboxError: something is missing on this machine; the message names it.
    """
    languages = list(languages)
    sandbox = open_sandbox(settings.sandbox)
    toolchain = check_tools(languages, sandbox.path)
    memory = settings.memory_mb << 20
    with Executor(sandbox, languages, workers=settings.num_workers, memory_bytes=memory) as executor:
        yield Bench(executor, sandbox, toolchain, settings)


def execute(
    out: str | Path, settings: ExecutionSettings, on_progress: OnProgress = lambda title, done, total: None
) -> dict[Path, Counter[Kind]]:
    """Judge the completions of a folder, or of every folder of a run, and write the result files beside them.

    What has an outcome already is not judged again, so that a killed call goes on where it was.

    Returns:
        folder -> how often each kind of outcome occurred.

    Raises:
        ResultError: a file is damaged, or there is none.
        ToolchainError, SandboxError: something is missing on this machine.
        InfrastructureError: a program could not be judged; the results of all others are written.
    """
    folders = {
        folder: [read_completions(path) for path in completion_files(folder).values()]
        for folder in language_folders(Path(out))
    }
    folders = {folder: problems for folder, problems in folders.items() if problems}
    if not folders:
        raise ResultError(f"{out} holds no completions file")
    languages = {folder: find_language(problems[0].language) for folder, problems in folders.items()}
    for folder, problems in folders.items():
        mixed = {problem.language for problem in problems} - {languages[folder].name}
        if mixed:
            raise ResultError(
                f"{folder} mixes {languages[folder].name} and {', '.join(mixed)}; one folder, one language"
            )
    distinct = {language.name: language for language in languages.values()}
    with writable(Path(out)), open_bench(distinct.values(), settings) as bench:
        judges = {folder: bench.judge_for(folder, languages[folder]) for folder in folders}
        for folder, judge in judges.items():
            for problem in folders[folder]:
                judge.submit(problem)
        return finish(bench, judges, folders, on_progress)


def finish(
    bench: Bench,
    judges: Mapping[Path, FolderJudge],
    problems: Mapping[Path, Iterable[Completions]],
    on_progress: OnProgress,
) -> dict[Path, Counter[Kind]]:
    """Wait until all programs are judged, saying how many are, and write the results of every folder's problems.

    Returns:
        folder -> how often each kind of outcome occurred.

    Raises:
        InfrastructureError: a program could not be judged; the results of all others are written.
    """

    def show() -> None:
        done, total = (sum(part) for part in zip(*(judge.counts for judge in judges.values()), strict=True))
        on_progress("judging", done, total)

    bench.executor.finish(show)
    counts: dict[Path, Counter[Kind]] = {folder: Counter() for folder in judges}
    failed: dict[str, InfrastructureError] = {}
    for folder, judge in judges.items():
        for problem in problems[folder]:
            try:
                counts[folder] += judge.write(problem)
            except InfrastructureError as error:
                failed[problem.name] = error
        judge.close()
    if failed:
        name, first = next(iter(failed.items()))
        raise InfrastructureError(
            f"{len(failed)} problems could not be judged, the first {name}: {first}; run the same command again"
        ) from first
    return counts
