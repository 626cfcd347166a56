"""Two models on the same problems: how far apart, how sure, and how small a difference could have been seen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from moe_codegen.errors import ResultError
from moe_codegen.evaluation.run_folder import language_folders
from moe_codegen.evaluation.scores import Tally, by_dataset, pass_at_k, score_folder
from moe_codegen.metrics import share_difference_interval

SIGNIFICANCE, POWER = 0.05, 0.8
_PERMUTATIONS, _ROWS = 10_000, 1000  # in all, and drawn at a time


@dataclass(frozen=True)
class Comparison:
    """Of pass@k of A and B on the same problems; differences are B - A, as shares of 1.

    Attributes:
        a, b: pass@k of each.
        low, high: a 95% interval of the difference, problems drawn in pairs, see `share_difference_interval`; None
            where they are too few.
        p_value: two-sided, of no difference: McNemar's exact test where each problem has one sample, else a
            permutation test that swaps A and B within problems.
        test: which of the two.
        smallest_detectable: the difference that a test of so many problems at the 5% level would find with a power of
            80%; None where all problems differ alike, or none does.
        differences: problem -> B - A.
    """

    k: int
    problems: int
    a: float
    b: float
    low: float | None
    high: float | None
    p_value: float
    test: str
    smallest_detectable: float | None
    differences: Mapping[str, float]

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a

    @property
    def p_text(self) -> str:
        """The p-value with three digits; less than they can show is only said to be less."""
        return f"{self.p_value:.3f}" if self.p_value >= 0.0005 else "<0.001"

    @property
    def wins(self) -> list[str]:
        """The problems that B solves more often, the clearest first."""
        return [name for name, difference in self._sorted() if difference > 0]

    @property
    def losses(self) -> list[str]:
        """The problems that A solves more often, the clearest first."""
        return [name for name, difference in self._sorted() if difference < 0]

    def _sorted(self) -> list[tuple[str, float]]:
        return sorted(self.differences.items(), key=lambda item: (-abs(item[1]), item[0]))


def compare(a: Mapping[str, Tally], b: Mapping[str, Tally], k: int = 1) -> Comparison:
    """Compare pass@k of two models, given as problem -> tally.

    Raises:
        ResultError: not the same problems.
        ConfigError: k is larger than the number of samples.
    """
    apart = sorted(a.keys() ^ b.keys())
    if apart:
        raise ResultError(
            f"the two have not the same problems: {len(apart)} are in one only, the first {apart[0]}; "
            "evaluate both on the same ones"
        )
    values_a, values_b = (
        np.array([pass_at_k(tallies[name].samples, tallies[name].passed, k) for name in a]) for tallies in (a, b)
    )
    differences = values_b - values_a
    interval = share_difference_interval(differences, list(a))
    single = all(tally.samples == 1 for tallies in (a, b) for tally in tallies.values())
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        k=k,
        problems=len(a),
        a=float(values_a.mean()),
        b=float(values_b.mean()),
        low=interval.low,
        high=interval.high,
        p_value=mcnemar(wins, losses) if single else permutation_test(differences),
        test="McNemar, exact" if single else "permutation",
        smallest_detectable=smallest_detectable(differences),
        differences=dict(zip(a, map(float, differences), strict=True)),
    )


def compare_folders(first: Path, second: Path, k: int = 1, *, partial: bool = False) -> dict[str, Comparison]:
    """'dataset language' -> comparison. Raises `ResultError` where one lacks what the other has, or has it twice."""
    a, b = (
        by_dataset(score_folder(folder, [k], partial=partial) for folder in language_folders(out))
        for out in (first, second)
    )
    if a.keys() != b.keys():
        raise ResultError(f"{first} has {', '.join(a)} and {second} has {', '.join(b)}; compare folder by folder")
    return {name: compare(a[name].tallies, b[name].tallies, k) for name in a}


def mcnemar(wins: int, losses: int) -> float:
    """The two-sided p-value of McNemar's exact test: of n = wins + losses, each is a win with probability 1/2."""
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def permutation_test(differences: np.ndarray) -> float:
    """The share of random sign flips of the paired differences whose mean is at least as far from zero."""
    generator = np.random.default_rng(0)
    observed, extreme = abs(differences.mean()) - 1e-12, 0
    for _ in range(_PERMUTATIONS // _ROWS):
        signs = generator.choice([-1.0, 1.0], size=(_ROWS, len(differences)))
        extreme += int((abs((signs * differences).mean(axis=1)) >= observed).sum())
    return (extreme + 1) / (_PERMUTATIONS + 1)


def smallest_detectable(differences: np.ndarray) -> float | None:
    """(z_{1-a/2} + z_{power}) sd(differences) / sqrt(problems): what a paired test of this size finds."""
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if deviation == 0:
        return None
    normal = NormalDist()
    return (normal.inv_cdf(1 - SIGNIFICANCE / 2) + normal.inv_cdf(POWER)) * deviation / math.sqrt(len(differences))
