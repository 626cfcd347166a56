"""`torch.compile(fullgraph=True)`: one graph, the same numbers."""

import pytest
import torch

from tests.modeling.mixture import mixture, relative_error, tokens

ONE_LAYER = {"gpt_bigcode": dict(n_layer=1, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)}


def small(family, **fields):
    torch._dynamo.reset()
    return mixture(family, dense=ONE_LAYER.get(family, dict(num_hidden_layers=1)), **fields)


# aot_eager traces and checks the whole graph as inductor does, and leaves out the generating of C++.
@pytest.mark.parametrize("family", ["gpt_bigcode", "phi", "llama"])
@pytest.mark.parametrize("output_router_logits", [False, True])
def test_a_forward_is_one_graph(output_router_logits, family):
    model = small(family)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = compiled(tokens(), output_router_logits=output_router_logits)
    expected = model(tokens(), output_router_logits=output_router_logits)
    assert relative_error(actual.logits, expected.logits) < 1e-5
    if output_router_logits:
        torch.testing.assert_close(actual.router_logits, expected.router_logits)


def test_a_bf16_forward_is_one_graph():
    model = small("gpt_bigcode").bfloat16()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(tokens()).logits, model(tokens()).logits) < 0.02


def test_a_training_step_is_one_graph_with_the_router_losses():
    model = small("phi").train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(tokens(), labels=tokens()).loss
    loss.backward()
    actual = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = model(tokens(), labels=tokens())
    expected.loss.backward()
    torch.testing.assert_close(loss, expected.loss)
    assert expected.aux_loss > 0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_inductor_generates_code_that_gives_the_same():
    model = small("phi")
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        assert relative_error(compiled(tokens()).logits, model(tokens()).logits) < 1e-5
