"""Intervals for means of code, whose files are alike within a repository: the bootstrap over repositories.

A repository's second file says little that its first has not, so an interval that takes files for independent is too
narrow. Resampled are therefore whole repositories: the cluster bootstrap (Davison and Hinkley 1997, section 3.8), with
the percentiles of the resampled ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval; None where a single cluster says nothing of how clusters differ."""

    value: float
    low: float | None
    high: float | None
    clusters: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: for a difference, whether it is told from none."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def ratio_interval(
    numerators: np.ndarray,
    denominators: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`sum(numerators) / sum(denominators)`, resampled over whole `clusters`; all three are of one length.

    With denominators of one it is the interval of a mean. The same clusters and seed give the same resamples, whatever
    is measured on them.
    """
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    above = np.bincount(member, weights=numerators, minlength=len(names))
    below = np.bincount(member, weights=denominators, minlength=len(names))
    value = float(above.sum() / below.sum())
    if len(names) < 2:
        return Interval(value, None, None, len(names))
    generator = np.random.default_rng(seed)
    times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    totals = times @ below
    ratios = (times @ above)[totals > 0] / totals[totals > 0]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Interval(value, float(low), float(high), len(names))
