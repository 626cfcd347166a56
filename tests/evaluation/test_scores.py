"""pass@k against counting every draw, intervals against theory, and no problem silently missing."""

import itertools
import json
import math
from fractions import Fraction

import pytest

from moe_codegen.errors import ConfigError, ResultError
from moe_codegen.evaluation.multipl_e import Completions, Result, result_files, write_completions, write_results
from moe_codegen.evaluation.scores import Tally, pass_at_k, score, score_folder
from tests.evaluation.multiple import multiple
from tests.evaluation.programs import problem


def fill(folder, passed, samples=2, names=None, completions=True):
    """Write problems of which the first `passed[i]` of `samples` passed."""
    folder.mkdir(exist_ok=True)
    for index, count in enumerate(passed):
        name = names[index] if names else f"HumanEval_{index}"
        texts = tuple(f"{name} {sample}" for sample in range(samples))
        one = Completions(**vars(problem("js", name)), completions=texts, temperature=0.2, top_p=1.0, max_tokens=9)
        if completions:
            write_completions(folder, one)
        results = [
            Result(program, 0, "", "", *((0, "OK") if sample < count else (1, "Exception")))
            for sample, program in enumerate(one.programs)
        ]
        write_results(folder, one, results)
    return folder


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_draws_with_one_that_passed(samples):
    for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        draws = list(itertools.combinations([index < passed for index in range(samples)], k))
        assert pass_at_k(samples, passed, k) == float(Fraction(sum(map(any, draws)), len(draws)))


def test_pass_at_k_is_the_published_product():
    for passed in (0, 1, 30, 150, 199, 200):
        product = math.prod(1 - 100 / i for i in range(200 - passed + 1, 201)) if 200 - passed >= 100 else 0.0
        assert pass_at_k(200, passed, 100) == pytest.approx(1 - product, rel=1e-12)


def test_the_reference_is_met_to_the_last_bit():
    for row in json.loads((multiple() / "solutions/pass_at_k_reference.json").read_text()):
        assert pass_at_k(row["n"], row["c"], row["k"]) == row["pass_at_k"]


def test_more_than_was_sampled_is_refused():
    with pytest.raises(ConfigError, match="pass@100 cannot be told from 20 samples"):
        pass_at_k(20, 20, 100)
    with pytest.raises(ConfigError, match="passed=3 must lie between 0 and samples=2"):
        pass_at_k(2, 3, 1)


@pytest.mark.parametrize(("passed", "samples"), [(1, 1), (10, 20)])
def test_the_interval_is_as_wide_as_theory_has_it(passed, samples):
    found = score({f"p{n}": Tally(samples, passed if n < 40 else 0) for n in range(161)}, 1)
    share = passed / samples
    half = 1.96 * share * math.sqrt(40 / 161 * 121 / 161 / 161)  # for single samples about 6.7 points
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
    assert found.value == pytest.approx(share * 40 / 161)
    assert found.low < found.value < found.high


def test_nothing_and_everything_solved_are_not_known_for_sure():
    nothing, everything = (score({f"p{n}": Tally(20, passed) for n in range(161)}, 10) for passed in (0, 20))
    assert (nothing.low, nothing.high) == (0, pytest.approx(3.84 / (161 + 3.84), rel=1e-3))
    assert (everything.low, everything.high) == (pytest.approx(1 - nothing.high), 1)


@pytest.mark.parametrize("passed", [lambda n: n % 3, lambda n: 2 * (n % 2)], ids=["some", "always or never"])
def test_few_problems_have_no_interval(passed):
    assert score({f"p{n}": Tally(2, passed(n)) for n in range(9)}, 1).low is None


def test_a_folder_is_scored_raw_and_over_problems_that_can_pass(tmp_path):
    names = ["HumanEval_1_x", "HumanEval_51_remove_vowels", "HumanEval_92_any_int", "HumanEval_3_y"]
    folder = fill(tmp_path / "humaneval-js-tiny-0.2-reworded", [2, 0, 0, 1], names=names)
    scores = score_folder(folder, [1, 2], partial=True)
    assert {k: share.value for k, share in scores.raw.items()} == {1: 3 / 8, 2: 2 / 4}
    assert {k: share.value for k, share in scores.passable.items()} == {1: 3 / 4, 2: 2 / 2}
    assert set(scores.unpassable) == set(names[1:3])
    fewer = fill(tmp_path / "humaneval-js-fewer-0.2-reworded", [2, 0], names=names[:2])
    assert set(score_folder(fewer, partial=True).unpassable) == {names[1]}
    assert scores.tallies["HumanEval_3_y"] == Tally(2, 1)
    with pytest.raises(ConfigError, match="pass@3 cannot be told from 2"):
        score_folder(folder, [3], partial=True)


def test_by_default_k_is_1_10_and_100_as_far_as_there_are_samples(tmp_path):
    folder = fill(tmp_path / "some", [3], samples=12)
    assert [*score_folder(folder).raw] == [1, 10]


def test_a_dataset_with_fewer_results_than_problems_is_refused(tmp_path):
    folder = fill(tmp_path / "humaneval-js-tiny-0.2-reworded", [1, 2], completions=False)
    with pytest.raises(ResultError, match="the results of 2 problems and the dataset 161"):
        score_folder(folder)


def test_a_missing_result_file_is_no_smaller_denominator(tmp_path):
    folder = fill(tmp_path / "some", [1, 2, 0])
    result_files(folder)["HumanEval_1"].unlink()
    with pytest.raises(ResultError, match=r"lacks the results of 1 problems, the first HumanEval_1; .*with --partial"):
        score_folder(folder)
    assert len(score_folder(folder, partial=True).tallies) == 2


def test_a_corrupt_result_file_is_named(tmp_path):
    folder = fill(tmp_path / "some", [1, 2, 0])
    path = result_files(folder)["HumanEval_2"]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ResultError, match=r"HumanEval_2\.results\.json\.gz is damaged"):
        score_folder(folder, partial=True)


def test_results_of_other_completions_are_noticed(tmp_path):
    folder = fill(tmp_path / "some", [1])
    one = Completions(
        **vars(problem("js", "HumanEval_0")), completions=("a", "b"), temperature=0.2, top_p=1.0, max_tokens=9
    )
    write_completions(folder, one)
    with pytest.raises(ResultError, match="was not made from HumanEval_0"):
        score_folder(folder)
