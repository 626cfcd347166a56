"""Intervals hold what they say about repositories, and naive ones would not."""

import numpy as np
import pytest

from moe_codegen.metrics import ratio_interval


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    repositories, files, covered, naive = 40, 20, 0, 0
    names = [str(i // files) for i in range(repositories * files)]
    for seed in range(200):
        # Intra-repository correlation 0.5: half of the variance is the repository's.
        values = np.repeat(generator.normal(0, 1, repositories), files) + generator.normal(0, 1, repositories * files)
        interval = ratio_interval(values, np.ones_like(values), names, resamples=400, seed=seed)
        covered += interval.low <= 0 <= interval.high
        naive += abs(values.mean()) < 1.96 * values.std() / np.sqrt(len(values))
    assert covered / 200 > 0.9
    assert naive / 200 < 0.7


def test_the_value_is_the_ratio_of_the_sums():
    interval = ratio_interval(np.array([1.0, 5.0]), np.array([1.0, 2.0]), ["a", "b"])
    assert interval.value == 2
    assert (interval.low, interval.high) == (1, 2.5)
    assert interval.clusters == 2


def test_equal_repositories_leave_no_doubt():
    interval = ratio_interval(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]), ["a", "b", "c"])
    assert (interval.low, interval.high) == pytest.approx((2, 2))
    assert interval.excludes_zero


def test_one_repository_says_nothing_of_others():
    interval = ratio_interval(np.array([1.0, 2.0]), np.ones(2), ["a", "a"])
    assert (interval.value, interval.low, interval.high, interval.excludes_zero) == (1.5, None, None, False)


def test_the_same_seed_gives_the_same_interval():
    values, names = np.arange(10.0), [str(i) for i in range(10)]
    assert ratio_interval(values, np.ones(10), names) == ratio_interval(values, np.ones(10), names)
    assert ratio_interval(values, np.ones(10), names) != ratio_interval(values, np.ones(10), names, seed=1)
