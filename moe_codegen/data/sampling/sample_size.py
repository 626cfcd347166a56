"""How many files say a mean within a stated precision, where files of one repository are alike.

Notation: N files in R repositories, mean mu and standard deviation sigma of the quantity, rho its intra-repository
correlation, m files taken of a repository.
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
    design_effect: float
    files: int


def sample_size(
    population: int, variation: float, precision: float, confidence: float, files_a_repo: float, rho: float
) -> SampleSize:
    """n0 = (z sigma / (epsilon mu))^2 (Cochran 1977, ch. 4), corrected for N, times 1 + (m - 1) rho.

    `variation` is sigma / mu, `precision` epsilon the half-width of the interval relative to the mean.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    unlimited = (z * variation / precision) ** 2
    finite = unlimited / (1 + max(unlimited - 1, 0.0) / population) if population else 0.0
    effect = 1 + (max(files_a_repo, 1.0) - 1) * rho
    return SampleSize(unlimited, finite, effect, min(population, math.ceil(finite * effect)))


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


def cluster_interval(
    values: np.ndarray, repositories: np.ndarray, confidence: float, population: float = math.inf
) -> tuple[float, float]:
    """Mean of the values and half-width of its interval with standard errors clustered by repository.

    The interval is for the mean of the `population` files of which these are, so none where these are all of them; an
    endless population is whatever other repositories there are. The half-width is infinite for a single repository:
    nothing is known of how repositories differ.
    """
    mean = float(np.mean(values))
    left = 1 - len(values) / population  # the finite-population correction, which the sample's size has too
    if left <= 0:
        return mean, 0.0
    _, group = np.unique(repositories, return_inverse=True)
    groups = int(group.max()) + 1
    if groups < 2:
        return mean, math.inf
    residuals = np.bincount(group, weights=values - mean)
    error = math.sqrt(left * groups / (groups - 1) * float(np.sum(residuals**2))) / len(values)
    return mean, NormalDist().inv_cdf((1 + confidence) / 2) * error
