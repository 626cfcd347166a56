"""Intervals for means over repositories or problems, which are what a benchmark has drawn: 95%, two-sided.

A repository's second file says little that its first has not, so an interval that takes files for independent is too
narrow. Resampled are therefore whole repositories: the cluster bootstrap (Davison and Hinkley 1997, section 3.8), with
the percentiles of the resampled ratio. Over fewer than `FEWEST` clusters, which vary too little among themselves
(Cameron, Gelbach and Miller 2008, table 3), there is no interval of any kind. Where all clusters have the same share
the bootstrap has no width at all, and Wilson's score interval of the share of clusters that differ stands in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST = 10  # clusters that a bootstrap needs: over 5 it holds the truth 4 times in 5, not 19 times in 20
ROUNDING = 1e-12  # a narrower interval has no width
FEW_REPOSITORIES = (
    f"Files of one repository are alike, so fewer than {FEWEST} repositories have no interval and no verdict: hold out "
    "more, with a larger `--validation` of `moe-codegen data split`."
)


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its interval; None where there are too few clusters to tell how they differ."""

    value: float
    low: float | None
    high: float | None
    clusters: int


def too_few(clusters: int, one: str = "repository", many: str = "repositories") -> str:
    """What is said where an interval would stand."""
    return f"{clusters} {one if clusters == 1 else many}: too few for an interval"


def ratio_interval(
    numerators: np.ndarray,
    denominators: np.ndarray,
    clusters: Sequence[str] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`sum(numerators) / sum(denominators)`, resampled over whole `clusters`; all three are of one length.

    With denominators of one it is the interval of a mean. The same clusters and seed give the same resamples, whatever
    is measured on them. Fewer than `FEWEST` clusters have no bounds.
    """
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    above = np.bincount(member, weights=numerators, minlength=len(names))
    below = np.bincount(member, weights=denominators, minlength=len(names))
    value = float(above.sum() / below.sum())
    if len(names) < FEWEST:
        return Interval(value, None, None, len(names))
    generator = np.random.default_rng(seed)
    times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    totals = times @ below
    ratios = (times @ above)[totals > 0] / totals[totals > 0]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Interval(value, float(low), float(high), len(names))


def share_interval(shares: np.ndarray, clusters: Sequence[str] | np.ndarray) -> Interval:
    """The mean of `shares`, each between 0 and 1; Wilson's interval where every cluster has one share, 0 or 1."""
    distinct = len(set(clusters))
    if FEWEST <= distinct == len(shares) and np.isin(shares, (0, 1)).all():
        value = float(np.mean(shares))
        return Interval(value, *wilson(value, distinct), distinct)
    return _bounded_interval(shares, clusters, 0, 1)


def share_difference_interval(differences: np.ndarray, clusters: Sequence[str] | np.ndarray) -> Interval:
    """The mean of paired differences of shares, each between -1 and 1."""
    return _bounded_interval(differences, clusters, -1, 1)


def _bounded_interval(values: np.ndarray, clusters: Sequence[str] | np.ndarray, least: float, most: float) -> Interval:
    """The mean of `values`, each between `least` and `most`.

    Where every cluster has that mean, the bootstrap has no width. Then the share of clusters that may differ is at most
    Wilson's, and each may differ as far as the bounds allow.
    """
    found = ratio_interval(values, np.ones(len(values)), clusters)
    if found.low is None or found.high is None or found.high - found.low > ROUNDING:
        return found
    value, reach = found.value, wilson(0.0, found.clusters)[1]
    return Interval(value, value - reach * (value - least), value + reach * (most - value), found.clusters)


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The score interval of a share of independent trials (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4).

    Of none in n trials, 0 to 3.8 / (n + 3.8).
    """
    z_squared = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    middle, doubt = share + z_squared / (2 * trials), share * (1 - share) / trials + z_squared / (2 * trials) ** 2
    half, scale = math.sqrt(z_squared * doubt), 1 + z_squared / trials
    return (0.0 if share == 0 else (middle - half) / scale), (1.0 if share == 1 else (middle + half) / scale)
