"""Intervals hold what they say about repositories, and naive ones would not."""

import numpy as np
import pytest

from moe_codegen.metrics import intervals, ratio_interval, share_difference_interval, share_interval
from moe_codegen.metrics.intervals import too_few


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


def test_five_repositories_would_promise_too_much_so_they_promise_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    covered = 0
    monkeypatch.setattr(intervals, "FEWEST", 2)
    for _ in range(300):
        interval = ratio_interval(generator.normal(size=5), np.ones(5), list("abcde"), resamples=400)
        covered += interval.low <= 0 <= interval.high
    assert covered / 300 < 0.88
    monkeypatch.undo()
    interval = ratio_interval(np.arange(9.0), np.ones(9), list("abcdefghi"))
    assert (interval.value, interval.low, interval.high) == (4, None, None)
    assert too_few(interval.clusters) == "9 repositories: too few for an interval"
    assert ratio_interval(np.arange(10.0), np.ones(10), list("abcdefghij")).low > 0


def test_the_value_is_the_ratio_of_the_sums():
    interval = ratio_interval(np.array([1.0, 5.0]), np.array([1.0, 2.0]), ["a", "b"])
    assert (interval.value, interval.clusters) == (2, 2)


def test_equal_repositories_leave_no_doubt():
    sizes, names = np.arange(1.0, 13), [str(i) for i in range(12)]
    interval = ratio_interval(2 * sizes, sizes, names)
    assert (interval.low, interval.high) == pytest.approx((2, 2))


@pytest.mark.parametrize(("passed", "problems"), [(0, 161), (161, 161), (1, 20), (40, 161), (3, 10)])
def test_shares_of_single_trials_have_the_score_interval(passed, problems):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(passed, problems).proportion_ci(method="wilson")
    interval = share_interval(np.array([1.0] * passed + [0.0] * (problems - passed)), range(problems))
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.high > interval.low


def test_none_and_all_leave_doubt_about_other_repositories():
    names = np.repeat(list("abcdefghijkl"), 5)
    assert share_interval(np.zeros(60), names) == share_interval(np.zeros(12), names[::5])
    assert share_interval(np.ones(60), names).low == pytest.approx(1 - share_interval(np.zeros(60), names).high)
    mixed = np.arange(60) % 2
    assert share_interval(mixed, names) == ratio_interval(mixed, np.ones(60), names)
    no_difference = share_difference_interval(np.zeros(60), names)
    assert -no_difference.low == no_difference.high == share_interval(np.zeros(60), names).high


@pytest.mark.parametrize("interval", [share_interval, share_difference_interval])
def test_shares_that_are_all_alike_leave_doubt_about_other_repositories(interval):
    names = np.repeat(list("abcdefghijkl"), 2)
    for alike in (np.full(24, 0.3), np.tile([0.6, 0.0], 12)):
        found = interval(alike, names)
        assert found.value == pytest.approx(0.3)
        assert found.high == pytest.approx(0.3 + 0.7 * share_interval(np.zeros(24), names).high)
        assert found.low < 0.3


@pytest.mark.parametrize("interval", [share_interval, share_difference_interval])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_fewer_than_ten_repositories_have_no_interval_of_any_kind(interval, share):
    for names in (range(9), [0, 1, 2] * 3):
        assert interval(np.full(9, share), names).low is None


def test_the_same_seed_gives_the_same_interval():
    values, names = np.arange(10.0), [str(i) for i in range(10)]
    assert ratio_interval(values, np.ones(10), names) == ratio_interval(values, np.ones(10), names)
    assert ratio_interval(values, np.ones(10), names) != ratio_interval(values, np.ones(10), names, seed=1)
