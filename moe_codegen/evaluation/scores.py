"""pass@k of a folder of results, with an interval over problems (Codex, arXiv 2107.03374)."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_codegen.errors import ConfigError, ResultError
from moe_codegen.evaluation.multipl_e import (
    completion_files,
    parse_folder_name,
    read_completions,
    read_results,
    result_files,
)
from moe_codegen.evaluation.problems import COUNTS
from moe_codegen.evaluation.run_folder import read_record
from moe_codegen.evaluation.unpassable import UNPASSABLE
from moe_codegen.metrics import Interval, share_interval

KS = (1, 10, 100)


@dataclass(frozen=True)
class Tally:
    """How many of a problem's samples there are, and how many passed."""

    samples: int
    passed: int


@dataclass(frozen=True)
class LanguageScores:
    """The scores of one folder: k -> the share of problems solved, with its 95% interval over problems.

    Attributes:
        samples: of each problem, at least.
        raw: over all problems, which is what others publish.
        passable: over those that some completion can pass.
        unpassable: the others, with the reason.
    """

    folder: Path
    dataset: str
    language: str
    tallies: Mapping[str, Tally]
    samples: int
    raw: dict[int, Interval]
    passable: dict[int, Interval]
    unpassable: Mapping[str, str]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that of `k` samples drawn from `samples`, of which `passed` passed, one at least passed.

    1 - C(n-c, k) / C(n, k), Codex eq. 1, in whole numbers, so that the result is the nearest float.

    Raises:
        ConfigError: more than there are; from n samples pass@k is only known up to k = n.
    """
    if not 1 <= k <= samples:
        raise ConfigError(f"pass@{k} cannot be told from {samples} samples a problem; generate at least {k}")
    if not 0 <= passed <= samples:
        raise ConfigError(f"passed={passed} must lie between 0 and samples={samples}")
    drawn = math.comb(samples, k)
    return (drawn - math.comb(samples - passed, k)) / drawn


def score(tallies: Mapping[str, Tally], k: int) -> Interval:
    """The mean of pass@k over problems, and its interval."""
    values = np.array([pass_at_k(tally.samples, tally.passed, k) for tally in tallies.values()])
    return share_interval(values, list(tallies))


def score_folder(folder: Path, ks: Sequence[int] = (), *, partial: bool = False) -> LanguageScores:
    """The scores of a folder with MultiPL-E's files.

    Args:
        ks: for which k; none: 1, 10 and 100 as far as there are samples.
        partial: accept fewer problems than the dataset has.

    Raises:
        ResultError: a file is damaged, missing, or made from other completions.
        ConfigError: a k larger than the number of samples.
    """
    dataset, language = identify(folder)
    tallies = read_tallies(folder, partial=partial)
    samples = min(tally.samples for tally in tallies.values())
    ks = ks or [k for k in KS if k <= samples]
    unpassable = {name: why for name, why in UNPASSABLE.get((dataset, language), {}).items() if name in tallies}
    passable = {name: tally for name, tally in tallies.items() if name not in unpassable}
    return LanguageScores(
        folder=folder,
        dataset=dataset,
        language=language,
        tallies=tallies,
        samples=samples,
        raw={k: score(tallies, k) for k in ks},
        passable={k: score(passable, k) for k in ks} if passable else {},
        unpassable=unpassable,
    )


def by_dataset(scores: Iterable[LanguageScores]) -> dict[str, LanguageScores]:
    """'dataset language' -> scores. Raises `ResultError` where two folders are of the same."""
    found: dict[str, LanguageScores] = {}
    for each in scores:
        name = f"{each.dataset} {each.language}"
        if name in found:
            raise ResultError(
                f"{found[name].folder} and {each.folder.name} are both of {name}; give one of them, or keep each model "
                "and temperature in a folder of its own"
            )
        found[name] = each
    return found


def identify(folder: Path) -> tuple[str, str]:
    """The dataset and language of a folder, by its name, else by its first file."""
    named = parse_folder_name(folder.name)
    if named is not None:
        return named
    files = [*result_files(folder).items()] or [*completion_files(folder).items()]
    if not files:
        raise ResultError(f"{folder} holds no result file")
    name, path = files[0]
    found = read_results(path) if "results" in path.name else read_completions(path)
    return ("humaneval" if name.startswith("HumanEval") else "mbpp"), found.language


def read_tallies(folder: Path, *, partial: bool = False) -> dict[str, Tally]:
    """Problem -> how many samples passed. Raises `ResultError` as `score_folder` does."""
    found = {name: read_results(path) for name, path in result_files(folder).items()}
    if not found:
        raise ResultError(f"{folder} holds no result file; run `moe-codegen evaluate execute {folder}`")
    completions = completion_files(folder)
    _check_complete(folder, found.keys(), completions.keys(), partial)
    for name, path in completions.items():
        programs = read_completions(path).programs
        if name in found and [result.program for result in found[name].results] != programs:
            raise ResultError(
                f"{result_files(folder)[name]} was not made from {path.name}; remove it and run "
                f"`moe-codegen evaluate execute {folder}`"
            )
    empty = next((name for name, results in found.items() if not results.results), None)
    if empty is not None:
        raise ResultError(f"{result_files(folder)[empty]} holds no result")
    return {name: Tally(len(results.results), results.num_passed) for name, results in found.items()}


def _check_complete(folder: Path, names: Set[str], completions: Set[str], partial: bool) -> None:
    if partial:
        return
    run = read_record(folder.parent)
    expected = set(run.problems.get(folder.name, {}).get("names", ())) if run else set()
    missing = sorted((expected | completions) - names)
    if missing:
        raise ResultError(
            f"{folder} lacks the results of {len(missing)} problems, the first {missing[0]}; run "
            f"`moe-codegen evaluate execute {folder}`; pass-at-k and compare score those that are there with --partial"
        )
    count = COUNTS.get(parse_folder_name(folder.name) or ("", ""), 0)
    if not expected and len(names) < count:
        raise ResultError(
            f"{folder} has the results of {len(names)} problems and the dataset {count}; "
            "pass-at-k and compare score those that are there with --partial"
        )
