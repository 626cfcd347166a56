"""The study's budgets, what it makes of several seeds, and from where on one curve lies below another."""

import resource
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.study.curves import crossing
from benchmarks.study.data import StudyData
from benchmarks.study.estimates import estimate, estimate_differences
from benchmarks.study.findings import agreement
from benchmarks.study.measure import Measures
from benchmarks.study.protocol import COMPARISONS, LANGUAGES, LONGEST_DENSE, MIXTURES, RIVALS, SCALES, budget
from moe_codegen.errors import SourceError
from moe_codegen.metrics import DocumentLosses, LoadCounts, load_summary


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_at_equal_tokens_every_rival_sees_as_many_with_its_experts_counted(scale):
    for name, rival in RIVALS.items():
        if rival.equal_flops is None:
            experts = len(LANGUAGES) * scale.expert_tokens if rival.of_experts else 0
            assert experts + budget(rival, scale) == scale.continued_tokens, name


def test_a_rival_at_equal_flops_has_no_token_budget_and_is_dense():
    equal = [rival for rival in RIVALS.values() if rival.equal_flops]
    assert equal
    for rival in equal:
        assert budget(rival, SCALES["cpu"]) is None
        assert not rival.is_mixture
        assert RIVALS[rival.equal_flops].is_mixture


def test_half_size_experts_cost_a_token_what_the_dense_ffn_costs():
    for mixture in MIXTURES.values():
        granularity = mixture.options.get("granularity", 1)
        assert mixture.options.get("top_k", 2) / granularity in (1, 2)


def test_comparisons_name_models_that_are_made_and_are_as_equal_as_they_say():
    for pair in COMPARISONS:
        assert {pair.one, pair.other} <= {*RIVALS, *MIXTURES}
        if pair.equal == "training FLOPs":
            assert RIVALS[pair.other].equal_flops == pair.one
        elif pair.equal:
            assert RIVALS[pair.one].equal_flops is RIVALS[pair.other].equal_flops is None
        if pair.equal == "active FLOPs":
            options = MIXTURES[RIVALS[pair.one].start].options
            assert options.get("top_k", 2) == options["granularity"]
            assert not RIVALS[pair.other].is_mixture


def test_curves_are_compared_with_the_dense_model_that_saw_most():
    dense = [name for name, rival in RIVALS.items() if rival.equal_flops]
    assert LONGEST_DENSE in dense
    assert not MIXTURES[RIVALS[RIVALS[LONGEST_DENSE].equal_flops].start].of_experts  # every token costs two FFNs


def test_a_corpus_that_lacks_a_language_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "python.parquet").touch()
    with pytest.raises(SourceError, match=r"no cpp\.parquet, java\.parquet, javascript\.parquet; the study"):
        StudyData(tmp_path, tmp_path / "data", SCALES["smoke"], num_proc=1)
    assert not (tmp_path / "data").exists()


def losses(*nats):
    """Of two files of ten tokens each, from two repositories."""
    return DocumentLosses(
        ("a", "b"), ("r", "s"), ("python", "python"), np.array(nats), np.array([10, 10]), np.array([30, 30])
    )


def test_several_seeds_give_their_mean_and_their_spread():
    one, other = [losses(20.0, 30.0), losses(22.0, 32.0)], [losses(30.0, 40.0), losses(28.0, 38.0)]
    found = estimate(one)["python"]
    assert found.interval.value == pytest.approx(2.6)
    assert found.by_seed == pytest.approx((2.5, 2.7))
    assert found.spread == pytest.approx(0.02**0.5)
    assert estimate_differences(one, other)["all"].by_seed == pytest.approx((-1.0, -0.6))
    assert estimate(one[:1])["python"].spread is None


def test_losses_that_are_not_written_whole_are_not_there(tmp_path):
    measures = Mock(models=Mock(folder=tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Measures._kept(measures, "base.npy", lambda: losses(20.0, 30.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "losses" / "base.npy").exists()


def test_steps_round_to_whole_batches():
    scale = replace(SCALES["cpu"], batch_size=4, sequence_length=8)
    assert scale.steps(100) == 3
    assert scale.steps(1) == 1


def test_a_mixture_pays_from_the_start_of_the_last_stretch_below():
    x = [1.0, 2.0, 3.0, 4.0]
    assert crossing(x, [1.0, 3.0, 1.0, 1.0], x, [2.0] * 4) == 3.0
    assert crossing(x, [3.0, 1.0, 1.0, 1.0], x, [2.0] * 4) == 2.0
    assert crossing(x, [1.0, 1.0, 1.0, 3.0], x, [2.0] * 4) is None


def test_a_last_point_alone_below_is_no_crossing():
    x = [1.0, 2.0, 3.0]
    assert crossing(x, [3.0, 3.0, 1.0], x, [2.0] * 3) is None


def test_curves_of_different_points_are_compared_where_both_have_been():
    # The other falls from 4 to 0 over x = 0 to 4, so that it is at 2.5 where x is 1.5.
    assert crossing([1.5, 3.0, 9.0], [2.4, 0.9, 7.0], [0.0, 4.0], [4.0, 0.0]) == 1.5
    assert crossing([1.5, 2.0, 3.0], [2.6, 1.9, 0.9], [0.0, 4.0], [4.0, 0.0]) == 2.0
    assert crossing([8.0, 9.0], [0.0, 0.0], [0.0, 4.0], [4.0, 0.0]) is None


@pytest.mark.parametrize(("experts", "chance"), [(4, "0.25"), (5, "0.20")])
def test_chance_is_that_of_as_many_experts_as_there_are(experts, chance):
    uniform = LoadCounts(LANGUAGES, (0,), *(np.full((len(LANGUAGES), 1, experts), 10) for _ in range(2)))
    assert f"(chance {chance}): layer 0: accuracy {chance}," in agreement("mixed", [load_summary(uniform)])
