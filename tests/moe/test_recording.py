"""The recorder sees each layer's last pass, and nothing after its context."""

import torch

from moe_codegen.moe import RoutingRecorder
from tests.modeling.mixture import mixture, tokens
from tests.tiny import dense_model


def test_it_keeps_the_experts_of_the_last_pass_by_layer():
    moe = mixture("llama", moe_layers=[0, 2])
    ids = tokens()
    with RoutingRecorder(moe) as recorder, torch.no_grad():
        assert recorder.ids_LTK == []
        moe(input_ids=ids[:1])
        logits = moe(input_ids=ids, output_router_logits=True).router_logits
    assert recorder.is_mixture
    for ids_TK, logits_TE in zip(recorder.ids_LTK, logits, strict=True):
        assert torch.equal(ids_TK, logits_TE.topk(2).indices)
    assert recorder.last_LK == [ids_TK[-1].tolist() for ids_TK in recorder.ids_LTK]
    before = recorder.ids_LTK
    with torch.no_grad():
        moe(input_ids=ids[:1])
    assert [id(ids_TK) for ids_TK in recorder.ids_LTK] == [id(ids_TK) for ids_TK in before]


def test_a_dense_model_has_none():
    dense = dense_model("llama")
    with RoutingRecorder(dense) as recorder, torch.no_grad():
        dense(input_ids=tokens())
    assert not recorder.is_mixture
    assert recorder.ids_LTK == []
    assert recorder.last_LK == []
