"""The study's budgets, and from where on one curve lies below another."""

from dataclasses import replace

import pytest

from benchmarks.study.protocol import (
    COMPARISONS,
    CURVES_COMPARED,
    LANGUAGES,
    MIXTURES,
    RIVALS,
    SCALES,
    budget,
    crossing,
)


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


def test_comparisons_name_models_that_are_made():
    assert {name for pair in COMPARISONS for name in pair} <= {*RIVALS, *MIXTURES}
    assert all(RIVALS[one].is_mixture and not RIVALS[other].is_mixture for one, other in CURVES_COMPARED)


def test_steps_round_to_whole_batches():
    scale = replace(SCALES["cpu"], batch_size=4, sequence_length=8)
    assert scale.steps(100) == 3
    assert scale.steps(1) == 1


def test_a_mixture_pays_from_the_start_of_the_last_stretch_below():
    x = [1.0, 2.0, 3.0, 4.0]
    assert crossing(x, [3.0, 1.0, 3.0, 1.0], x, [2.0] * 4) == 4.0
    assert crossing(x, [3.0, 1.0, 1.0, 1.0], x, [2.0] * 4) == 2.0
    assert crossing(x, [1.0, 1.0, 1.0, 3.0], x, [2.0] * 4) is None


def test_curves_of_different_points_are_compared_where_both_have_been():
    # The other falls from 4 to 0 over x = 0 to 4, so that it is at 2.5 where x is 1.5.
    assert crossing([1.5, 3.0, 9.0], [2.4, 0.9, 7.0], [0.0, 4.0], [4.0, 0.0]) == 1.5
    assert crossing([1.5, 3.0], [2.6, 0.9], [0.0, 4.0], [4.0, 0.0]) == 3.0
    assert crossing([8.0, 9.0], [0.0, 0.0], [0.0, 4.0], [4.0, 0.0]) is None
