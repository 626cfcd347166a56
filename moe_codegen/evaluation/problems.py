"""Problems to be solved by completing a prompt: rows of MultiPL-E, and HumanEval and MBPP as first published."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from moe_codegen.errors import ConfigError, ProblemError
from moe_codegen.settings import settings_from

HUB_ID = "nuprl/MultiPL-E"
ORIGINALS = {  # dataset -> Hub id, configuration, split
    "humaneval_original": ("openai/openai_humaneval", None, "test"),
    "mbpp_original": ("google-research-datasets/mbpp", "full", "test"),
}
DATASETS = ("humaneval", "mbpp", *ORIGINALS)
# How many rows MultiPL-E v3.0 ("reworded") has, so that a folder with fewer results is noticed.
COUNTS = {
    **{("humaneval", language): 161 for language in ("py", "js", "cpp")},
    **{("mbpp", language): 397 for language in ("py", "js", "cpp")},
    ("humaneval", "java"): 158,
    ("mbpp", "java"): 386,
}
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # arXiv 2107.03374, section 2.1
_MBPP_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif")


@dataclass(frozen=True)
class Problem:
    """One problem; the program that is judged is `prompt + completion + "\\n" + tests`.

    Attributes:
        name: unique in its dataset, such as HumanEval_0_has_close_elements.
        language: MultiPL-E's name of it: py, java, js, cpp, ts.
        prompt: what the model continues.
        tests: end with exit status 0 where the completion is right.
        stop_tokens: a completion ends before the first of them.
    """

    name: str
    language: str
    prompt: str
    tests: str
    stop_tokens: tuple[str, ...]


_COLUMNS = tuple(field.name for field in fields(Problem))


def read_problems(dataset: str, language: str, source: str | Path | None = None) -> list[Problem]:
    """The problems of `dataset` in `language`, in the order of their rows.

    Args:
        dataset: humaneval or mbpp, as MultiPL-E translated them; humaneval_original or mbpp_original, Python only.
        language: py, java, js, cpp, ts or any other that MultiPL-E has.
        source: a .jsonl, .jsonl.gz or .parquet file, or a folder with such files named `{dataset}-{language}`;
            None reads the Hub.

    Raises:
        ProblemError: nothing there, a row that is no problem, two of one name, or another language.
    """
    if dataset not in DATASETS:
        raise ProblemError(f"unknown dataset {dataset!r}; expected one of {', '.join(DATASETS)}")
    if dataset in ORIGINALS and language != "py":
        raise ProblemError(
            f"{dataset} is Python only, asked for {language!r}; {dataset.split('_')[0]} has other languages"
        )
    path = None if source is None else _find(Path(source), dataset, language)
    where = f"{dataset}-{language} on the Hub" if path is None else str(path)
    rows = _hub_rows(dataset, language) if path is None else _file_rows(path)
    problems = [_problem(row, f"row {number} of {where}") for number, row in enumerate(rows, start=1)]
    if not problems:
        raise ProblemError(f"{where} holds no problem")
    names = [problem.name for problem in problems]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ProblemError(f"{where} names {twice} twice; a name identifies a problem")
    unfit = next((name for name in names if "/" in name), None)
    if unfit is not None:
        raise ProblemError(f"{where} names {unfit!r}, and a name is that of a file; write it without '/'")
    others = {problem.language for problem in problems} - {language}
    if others:
        raise ProblemError(f"{where} holds problems in {', '.join(sorted(others))}, asked for {language}")
    return problems


def _find(source: Path, dataset: str, language: str) -> Path:
    if source.is_file():
        return source
    stem = dataset if dataset in ORIGINALS else f"{dataset}-{language}"
    for suffix in _SUFFIXES:
        if (source / f"{stem}{suffix}").is_file():
            return source / f"{stem}{suffix}"
    raise ProblemError(f"{source} is no file and has no {stem}{' or '.join(_SUFFIXES)}")


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    is_parquet = path.suffix == ".parquet"
    try:
        if is_parquet:
            yield from _datasets().load_dataset("parquet", data_files=str(path), split="train")
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        kind = "Parquet" if is_parquet else "JSON lines"
        raise ProblemError(f"{path} cannot be read as {kind}: {error}") from error


def _hub_rows(dataset: str, language: str) -> Iterable[dict[str, Any]]:
    hub_id, config, split = ORIGINALS.get(dataset, (HUB_ID, f"{dataset}-{language}", "test"))
    datasets = _datasets()
    try:
        return datasets.load_dataset(hub_id, config, split=split)
    except Exception as error:
        raise ProblemError(
            f"{hub_id} {config or ''} cannot be read from the Hub ({type(error).__name__}: {error}); "
            "give a local file or folder with --problems"
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as missing:
        raise ProblemError("reading the Hub or Parquet needs datasets: pip install 'moe-codegen[data]'") from missing
    return datasets


def _problem(row: Mapping[str, Any], where: str) -> Problem:
    try:
        columns = _humaneval(row) if "entry_point" in row else _mbpp(row) if "test_list" in row else row
        return settings_from(Problem, {name: columns[name] for name in _COLUMNS}, "it")
    except (AttributeError, ConfigError, KeyError, TypeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ProblemError(
            f"{where} is no problem: {why}; expected the columns of MultiPL-E "
            f"({', '.join(_COLUMNS)}), of HumanEval or of MBPP"
        ) from error


def _humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": row["task_id"].replace("/", "_"),
        "language": "py",
        "prompt": row["prompt"],
        "tests": row["test"] + "\ncheck(" + row["entry_point"] + ")\n",
        "stop_tokens": _HUMANEVAL_STOPS,
    }


def _mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    """The task and its tests as a docstring before the code, as InCoder prompted it (arXiv 2204.05999, section 4.1)."""
    text = row["text"] if "text" in row else row["prompt"]
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    return {
        "name": f"mbpp_{row['task_id']}",
        "language": "py",
        "prompt": '"""\n' + "\n".join([text, *row["test_list"]]) + '\n"""\n',
        "tests": "\n".join([*([setup] if setup else []), *row["test_list"], ""]),
        "stop_tokens": _MBPP_STOPS,
    }
