"""Statistics of known routings have their known values, and the best assignment is the best of all."""

import itertools
import json
import math

import numpy as np
import pytest

from moe_codegen.metrics import LoadCounts, load_summary
from moe_codegen.metrics.routing import (
    assignment_accuracy,
    dead_experts,
    expert_shares,
    load_entropy,
    load_evenness,
    max_over_mean,
    normalised_mutual_information,
)

EVEN, ONE = np.array([25, 25, 25, 25]), np.array([100, 0, 0, 0])


def test_balance_and_collapse():
    counts = np.stack([EVEN, ONE])
    np.testing.assert_allclose(load_entropy(counts), [math.log(4), 0])
    np.testing.assert_allclose(load_evenness(counts), [1, 0])
    np.testing.assert_allclose(max_over_mean(counts), [1, 4])
    np.testing.assert_array_equal(dead_experts(counts), [0, 3])
    np.testing.assert_allclose(expert_shares(counts), counts / 100)


def test_an_expert_with_a_few_stray_tokens_is_dead():
    counts = np.array([9990, 9990, 10])
    assert dead_experts(counts) == 1
    assert dead_experts(counts, below=0.0001) == 0


def test_nothing_counted_is_no_division_by_zero():
    nothing = np.zeros((2, 3), np.int64)
    assert expert_shares(nothing).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert normalised_mutual_information(nothing) == 0
    assert assignment_accuracy(nothing) == (0, [None, None])


def test_information_is_none_for_equal_and_all_for_separate_routing():
    assert normalised_mutual_information(np.stack([EVEN, 10 * EVEN])) == pytest.approx(0)
    separate = np.array([[50, 50, 0, 0], [0, 0, 3, 7]])
    assert normalised_mutual_information(separate) == pytest.approx(1)
    assert normalised_mutual_information(separate[:1]) == 0


def test_information_equals_its_definition():
    counts = np.random.default_rng(0).integers(1, 50, (3, 5))
    joint = counts / counts.sum(axis=1, keepdims=True) / 3
    information = sum(
        joint[g, e] * math.log(joint[g, e] / (joint[g].sum() * joint[:, e].sum()))
        for g, e in itertools.product(range(3), range(5))
    )
    assert normalised_mutual_information(counts) == pytest.approx(information / math.log(3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3), (3, 6), (5, 4)])
def test_no_other_assignment_is_better(shape):
    counts = np.random.default_rng(shape).integers(1, 1000, shape)
    groups, experts = shape
    shares = expert_shares(counts)
    best = max(
        sum(shares[group, expert] for group, expert in zip(chosen, order, strict=True))
        for chosen in itertools.combinations(range(groups), min(shape))
        for order in itertools.permutations(range(experts), min(shape))
    )
    accuracy, assigned = assignment_accuracy(counts)
    taken = [expert for expert in assigned if expert is not None]
    assert len(assigned) == groups
    assert len(set(taken)) == len(taken) == min(shape)
    assert accuracy == pytest.approx(best / groups)
    right = sum(shares[group, expert] for group, expert in enumerate(assigned) if expert is not None)
    assert right == pytest.approx(best)


def test_groups_of_any_size_weigh_the_same():
    accuracy, experts = assignment_accuracy(np.array([[0, 900, 100], [1, 0, 1]]))
    assert experts == [1, 2] or experts == [1, 0]
    assert accuracy == pytest.approx((0.9 + 0.5) / 2)


def test_a_group_without_tokens_neither_counts_nor_takes_an_expert():
    with_one_empty = np.array([[0, 0], [0, 10], [10, 0]])
    assert assignment_accuracy(with_one_empty) == (1, [None, 1, 0])


def test_the_summary_is_json_with_every_layer():
    first = np.array([[[4, 0], [2, 2]], [[0, 8], [4, 4]]])
    summary = load_summary(LoadCounts(("python", "java"), (1, 3), first, first))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["tokens"] == [4, 8]
    apart, alike = summary["layers"]
    assert (apart["layer"], alike["layer"]) == (1, 3)
    assert apart["normalised_mutual_information"] == pytest.approx(1)
    assert apart["assignment"] == {"python": 0, "java": 1}
    assert alike["normalised_mutual_information"] == pytest.approx(0)
    assert alike["assignment_accuracy"] == pytest.approx(0.5)
    assert np.array(summary["share_by_group"]).shape == (2, 2, 2)
