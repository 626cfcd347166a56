"""The paired comparison against scipy, exact enumeration, and simulation."""

import io
import itertools

import numpy as np
import pytest
from rich.console import Console

from moe_codegen.cli import console
from moe_codegen.cli.evaluation_output import print_scores
from moe_codegen.errors import ResultError
from moe_codegen.evaluation.comparison import compare, compare_folders, mcnemar, permutation_test, smallest_detectable
from moe_codegen.evaluation.report.runs import read_runs
from moe_codegen.evaluation.run_folder import language_folders
from moe_codegen.evaluation.scores import Tally, score_folder
from tests.evaluation.test_scores import fill


def single(*passed):
    return {f"p{index}": Tally(1, value) for index, value in enumerate(passed)}


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (9, 3), (4, 4), (20, 35)])
def test_mcnemar_is_a_binomial_test_of_the_problems_that_differ(wins, losses):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses) == pytest.approx(expected)


def test_the_permutation_test_approaches_the_exact_one():
    differences = np.array([0.5, 0.25, -0.25, 0.75, 0.5, 0.0, 0.25, 0.5])
    means = [abs(np.dot(signs, differences)) for signs in itertools.product([1, -1], repeat=8)]
    exact = np.mean(np.array(means) >= abs(differences.sum()) - 1e-12)
    assert permutation_test(differences) == pytest.approx(exact, abs=0.01)


def test_of_single_samples_the_problems_won_and_lost_are_named():
    comparison = compare(single(1, 0, 0, 0, 1), single(1, 1, 1, 0, 0))
    assert (comparison.a, comparison.b, comparison.test) == (0.4, 0.6, "McNemar, exact")
    assert comparison.difference == pytest.approx(0.2)
    assert (comparison.wins, comparison.losses) == (["p1", "p2"], ["p4"])
    assert comparison.low is comparison.high is None  # of five problems
    assert comparison.p_value == mcnemar(2, 1)


def test_a_p_value_too_small_for_its_digits_is_not_shown_as_zero():
    apart = compare(single(*[0] * 20), single(*[1] * 20))
    assert (apart.p_value, apart.p_text) == (mcnemar(20, 0), "<0.001")
    assert compare(single(1, 0, 0, 0, 1), single(1, 1, 1, 0, 0)).p_text == "1.000"


def test_of_several_samples_pass_at_k_differs_by_problem():
    a, b = {"x": Tally(4, 1), "y": Tally(4, 2)}, {"x": Tally(4, 3), "y": Tally(4, 2)}
    comparison = compare(a, b, k=2)
    assert comparison.differences == {"x": pytest.approx(1.0 - 0.5), "y": 0.0}
    assert comparison.test == "permutation"
    assert compare(single(0, 1), {"p0": Tally(4, 3), "p1": Tally(4, 2)}).test == "permutation"


def test_a_model_does_not_differ_from_itself():
    tallies = {f"p{index}": Tally(5, index % 6) for index in range(30)}
    comparison = compare(tallies, tallies)
    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert comparison.low == -comparison.high == pytest.approx(-3.84 / (30 + 3.84), rel=1e-3)
    assert comparison.smallest_detectable is None


def test_the_smallest_detectable_difference_is_found_four_times_in_five():
    generator = np.random.default_rng(0)
    problems, deviation = 161, 0.4
    effect = smallest_detectable(generator.normal(0, deviation, 20_000)[:problems])
    found = 0
    for _ in range(2000):
        sample = generator.normal(effect, deviation, problems)
        found += abs(sample.mean()) / (sample.std(ddof=1) / problems**0.5) > 1.96
    assert 0.74 < found / 2000 < 0.86


def test_other_problems_cannot_be_compared():
    with pytest.raises(ResultError, match="1 are in one only, the first p2"):
        compare(single(1, 0), single(1, 0, 0))


def test_two_folders_of_one_dataset_and_language_are_told_apart_or_refused(tmp_path, monkeypatch):
    for name in ("one", "other"):
        fill(tmp_path / f"mbpp-lua-{name}-0.2-reworded", [1, 0])
    with pytest.raises(ResultError, match=r"mbpp-lua-one-.* and mbpp-lua-other-.* are both of mbpp lua; give one"):
        compare_folders(tmp_path, tmp_path, partial=True)
    with pytest.raises(ResultError, match="are both of mbpp lua"):
        read_runs([tmp_path])
    printed = io.StringIO()
    monkeypatch.setattr(console, "output", Console(file=printed, width=200))
    print_scores([score_folder(folder, partial=True) for folder in language_folders(tmp_path)])
    assert "mbpp-lua-one-0.2-reworded" in printed.getvalue()
    assert "mbpp-lua-other-0.2-reworded" in printed.getvalue()
