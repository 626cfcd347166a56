"""Counts equal a count by hand, padding left out and groups kept apart."""

from collections import Counter

import numpy as np
import pytest
import torch

from moe_codegen.errors import ConfigError
from moe_codegen.metrics import ExpertLoad
from moe_codegen.moe import RoutingRecorder
from tests.modeling.mixture import mixture, tokens
from tests.tiny import dense_model

COUNTED = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
GROUPS = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]])


@pytest.fixture(scope="module")
def moe():
    return mixture("gpt_bigcode", moe_layers=[0, 2], num_experts=5)


def test_counts_equal_a_count_by_hand(moe):
    ids = tokens(2, 5)
    load = ExpertLoad.of_model(moe, ["python", "java"])
    with RoutingRecorder(moe) as recorder, torch.no_grad():
        for _ in range(2):
            moe(input_ids=ids)
            load.add(recorder.ids_LTK, COUNTED, GROUPS)
    counts = load.counts()
    assert counts.layers == (0, 2)
    for place, ids_TK in enumerate(recorder.ids_LTK):
        chosen, first = Counter(), Counter()
        for token, experts in enumerate(ids_TK.tolist()):
            if COUNTED.flatten()[token]:
                group = int(GROUPS.flatten()[token])
                first[group, experts[0]] += 2
                chosen.update({(group, expert): 2 for expert in experts})
        for group in range(2):
            for expert in range(5):
                assert counts.chosen_GLE[group, place, expert] == chosen[group, expert]
                assert counts.first_GLE[group, place, expert] == first[group, expert]


def test_router_logits_and_recorded_ids_count_the_same(moe):
    ids = tokens(2, 5)
    recorded, from_logits = ExpertLoad.of_model(moe), ExpertLoad.of_model(moe)
    with RoutingRecorder(moe) as recorder, torch.no_grad():
        outputs = moe(input_ids=ids, output_router_logits=True)
    recorded.add(recorder.ids_LTK)
    from_logits.add([logits_TE.topk(moe.config.num_experts_per_tok).indices for logits_TE in outputs.router_logits])
    torch.testing.assert_close(recorded.counts_2GLE, from_logits.counts_2GLE)
    assert recorded.counts().first_GLE.sum(axis=-1).tolist() == [[10, 10]]
    recorded.reset()
    assert not np.any(recorded.counts().chosen_GLE)


def test_counting_is_part_of_training_and_leaves_its_gradients_alone(moe):
    load = ExpertLoad.of_model(moe)
    ids = tokens(2, 5)
    with RoutingRecorder(moe) as recorder:
        loss = moe(input_ids=ids, labels=ids).loss
    load.add(recorder.ids_LTK)
    loss.backward()
    assert load.counts().chosen_GLE.sum() == 2 * 2 * 10


def test_adding_can_be_traced_without_a_break(moe):
    """What can be compiled whole reads no value back, so it never waits for the device."""
    load = ExpertLoad.of_model(moe, ["python", "java"])
    ids = [torch.randint(0, 5, (10, 2)) for _ in range(2)]
    torch.compile(load.add, fullgraph=True, backend="eager")(ids, COUNTED, GROUPS)
    assert load.counts().first_GLE.sum() == 2 * int(COUNTED.sum())


def test_a_dense_model_and_foreign_routing_are_refused(moe):
    with pytest.raises(ConfigError, match="dense"):
        ExpertLoad.of_model(dense_model("gpt_bigcode"))
    with pytest.raises(ConfigError, match="1 layers"):
        ExpertLoad.of_model(moe).add([torch.zeros(3, 2, dtype=torch.int64)])
