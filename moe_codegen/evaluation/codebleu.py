"""CodeBLEU (arXiv 2009.10297): how alike two texts of code are in words, syntax and data flow.

A similarity and never correctness: a program broken by one operator can score nearly what the right one does. It is
here because earlier studies report it.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from moe_codegen.errors import ConfigError, ResultError
from moe_codegen.evaluation.multipl_e import completion_files, read_completions
from moe_codegen.languages import canonical_language
from moe_codegen.metrics import Interval, share_interval

LANGUAGES = ("python", "java", "javascript", "cpp")


def codebleu(reference: str, candidate: str, language: str) -> float:
    """CodeBLEU of one text against one reference, its four parts weighing the same, between 0 and 1.

    As the package has it, a data flow of which nothing matches counts as 1, as does a reference without any.

    Raises:
        ConfigError: a language that it is not defined for here, or the extra `codebleu` is not installed.
    """
    name = canonical_language(language)
    if name not in LANGUAGES:
        raise ConfigError(f"CodeBLEU is not measured for {language!r}; it is for {', '.join(LANGUAGES)}")
    try:
        from codebleu import calc_codebleu
    except ModuleNotFoundError as missing:
        raise ConfigError(f"{missing.name} is missing: pip install 'moe-codegen[codebleu]'") from missing
    with _without_warnings():
        return float(calc_codebleu([reference], [candidate], lang=name)["codebleu"])


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the package, which logs a line for each reference without data flow, to the root logger."""
    root = logging.getLogger()
    root.addFilter(_is_error)
    try:
        yield
    finally:
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def folder_codebleu(folder: Path, references: Mapping[str, str]) -> tuple[Interval | None, int]:
    """The mean over problems of their completions' mean CodeBLEU, with its interval over problems.

    Args:
        folder: MultiPL-E's completion files of one language.
        references: problem -> a right completion.

    Returns:
        The mean over the problems that have a reference, None where none has, and how many have none.

    Raises:
        ResultError: no completions.
    """
    files = completion_files(folder)
    if not files:
        raise ResultError(f"{folder} holds no completions")
    means = {}
    for problem in (problem for problem in files if problem in references):
        completions = read_completions(files[problem])
        scores = [
            codebleu(references[problem], completion, completions.language) for completion in completions.completions
        ]
        means[problem] = float(np.mean(scores))
    found = share_interval(np.array(list(means.values())), list(means)) if means else None
    return found, len(files) - len(means)


def read_references(path: Path) -> dict[tuple[str, str], str]:
    """(language, problem) -> completion, from JSON lines with `name`, `language` and `completion` or `canonical`.

    Raises:
        ResultError: a line that is none of these.
    """
    references = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            completion = row["completion"] if "completion" in row else row["canonical"]
            if not isinstance(completion, str | None):
                raise TypeError(f"the completion is {completion!r}")
            references[row["language"], row["name"]] = completion
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(
                f"{path}, line {number}, is no reference ({error!r}); expected name, language and completion"
            ) from error
    return {key: text for key, text in references.items() if text is not None}
