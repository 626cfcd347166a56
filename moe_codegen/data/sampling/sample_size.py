"""How many files say a mean within a stated precision, where files of one repository are alike.

Notation: N files in R repositories, N_i of them in repository i; mean mu and standard deviation sigma of the quantity,
rho its intra-repository correlation. A sample s has n files, n_i of repository i, each of which stands for N_i / n_i:
repositories are drawn, not files, so that without these weights large ones would count for too little. N_s files are
in the repositories of the sample.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class SampleSize:
    """How a sample size came about; `files` is what has to be drawn."""

    unlimited: float  # n0, of an endless population of independent files
    finite: float  # with the finite-population correction
    files: int


def sample_size(errors: np.ndarray, variation: float, precision: float, confidence: float) -> SampleSize:
    """The fewest files whose mean is within `precision` of mu, relative to it; `errors` are those of `mean_errors`.

    n0 = (z sigma / (epsilon mu))^2, with the correction n0 / (1 + n0 / N) (Cochran 1977, ch. 4). `variation` is
    sigma / mu, `precision` epsilon the half-width of the interval relative to the mean.
    """
    unlimited = (_z(confidence) * variation / precision) ** 2
    finite = unlimited / (1 + unlimited / len(errors)) if len(errors) else 0.0
    enough = np.flatnonzero(errors * unlimited <= 1 + 1e-9)
    return SampleSize(unlimited, finite, int(enough[0]) + 1 if len(enough) else 0)


def mean_errors(repositories: np.ndarray, rho: float) -> np.ndarray:
    """V / sigma^2 of the mean of the first 1, 2, ..., N files, whose repositories these are in the order of drawing.

    V is the variance of the weighted mean about the mean of all N. Where y = mu + b_i + e with variances rho sigma^2
    of b and (1 - rho) sigma^2 of e, V / sigma^2 = rho (sum_s N_i^2 (1/N_s - 1/N)^2 + sum_not-s N_i^2 / N^2)
    + (1 - rho) (sum_s N_i^2 / n_i / N_s^2 - 1/N). Of files that are each a repository it is 1/n - 1/N.
    """
    total = len(repositories)
    _, repo, counts = np.unique(repositories, return_inverse=True, return_counts=True)
    turn = _turns(repo, counts)
    size = counts[repo].astype(np.float64)
    in_sample = np.cumsum(np.where(turn == 0, size, 0.0))
    squares = np.cumsum(np.where(turn == 0, size**2, 0.0))
    within = np.cumsum(size**2 * np.where(turn == 0, 1.0, 1 / (turn + 1) - 1 / np.maximum(turn, 1)))
    between = squares * (1 / in_sample - 1 / total) ** 2 + (squares[-1:] - squares) / total**2
    return np.maximum(rho * between + (1 - rho) * (within / in_sample**2 - 1 / total), 0.0)


def _turns(repo: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many files of its repository come before each file."""
    by_repo = np.argsort(repo, kind="stable")
    turn = np.empty(len(repo), np.int64)
    turn[by_repo] = np.arange(len(repo)) - np.repeat(np.cumsum(counts) - counts, counts)
    return turn


def variation_of(values: np.ndarray) -> float:
    """sigma / mu of positive values; 0 for fewer than two."""
    return float(np.std(values, ddof=1) / np.mean(values)) if len(values) > 1 and np.mean(values) else 0.0


def intra_correlation(values: np.ndarray, repositories: np.ndarray) -> float:
    """rho by one-way analysis of variance (unequal groups), between 0 and 1; 0 where nothing can be compared."""
    _, group, counts = np.unique(repositories, return_inverse=True, return_counts=True)
    groups, files = len(counts), len(values)
    if groups < 2 or files <= groups:
        return 0.0
    means = np.bincount(group, weights=values) / counts
    within = float(np.sum((values - means[group]) ** 2)) / (files - groups)
    between = float(np.sum(counts * (means - np.mean(values)) ** 2)) / (groups - 1)
    size = (files - float(np.sum(counts.astype(np.float64) ** 2)) / files) / (groups - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 0.0


@dataclass(frozen=True)
class Interval:
    """A mean and the half-widths of its intervals: for the files drawn from, and for those of other repositories."""

    mean: float
    half_width: float
    half_width_elsewhere: float  # infinite for a single repository: nothing is known of how repositories differ


def cluster_interval(
    values: np.ndarray, repositories: np.ndarray, population: np.ndarray, confidence: float
) -> Interval:
    """The mean that a sample says of its `population`, the repository of each file there is.

    Two stages, repositories and files of them, and the ratio to size (Cochran 1977, ch. 11): with W_i = N_i / N_s the
    mean is m = sum W_i m_i, its variance (1 - f) r/(r-1) sum W_i^2 (m_i - m)^2 + f sum W_i^2 (1 - n_i/N_i) s_i^2/n_i,
    f = r/R. Of one file of a repository s_i is unknown: it is taken from the repositories that have more in the sample,
    or from all files, where none has. Elsewhere f is 0.
    """
    names, all_counts = np.unique(population, return_counts=True)
    drawn, group, counts = np.unique(repositories, return_inverse=True, return_counts=True)
    sizes = all_counts[np.searchsorted(names, drawn)]
    weights = sizes / sizes.sum()
    means = np.bincount(group, weights=values) / counts
    mean = float(np.sum(weights * means))
    overall = float(np.sum((weights / counts)[group] * (values - mean) ** 2))
    squares = np.bincount(group, weights=(values - means[group]) ** 2)
    more = len(values) - len(drawn)
    of_others = squares.sum() / more if more else overall
    spread = np.where(counts > 1, squares / np.maximum(counts - 1, 1), of_others)
    within = float(np.sum(weights**2 * (1 - counts / sizes) * spread / counts))
    repos, share = len(drawn), len(drawn) / len(names)
    between = repos / (repos - 1) * float(np.sum(weights**2 * (means - mean) ** 2)) if repos > 1 else math.inf
    variance = ((1 - share) * between if share < 1 else 0.0) + share * within
    return Interval(mean, _z(confidence) * math.sqrt(variance), _z(confidence) * math.sqrt(between))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
