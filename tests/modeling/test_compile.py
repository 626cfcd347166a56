"""`torch.compile(fullgraph=True)`: one graph, the same numbers."""

import pytest
import torch
import transformers
from packaging.version import Version

from tests.modeling.mixture import IMPLEMENTATIONS, mixture, relative_error, tokens

ONE_LAYER = {"gpt_bigcode": dict(n_layer=1, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)}
COMPILABLE = [each for each in IMPLEMENTATIONS if each != "eager"]  # its shapes depend on the routing
BROKEN = Version(transformers.__version__) < Version("5.21")


def small(family, implementation, dtype=torch.float32, **fields):
    model = mixture(family, dense=ONE_LAYER.get(family, dict(num_hidden_layers=1)), **fields).to(dtype)
    model.set_experts_implementation(implementation)
    torch._dynamo.reset()
    return model


def skip_where_transformers_fails(implementation, dtype=torch.float32):
    if implementation == "grouped_mm" and dtype == torch.float32 and BROKEN:
        pytest.skip("transformers before 5.21 cannot trace the fallback of its own grouped_mm")


# aot_eager traces and checks the whole graph as inductor does, and leaves out the minute of generating C++.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", COMPILABLE)
@pytest.mark.parametrize("family", ["gpt_bigcode", "phi", "llama"])
def test_a_forward_is_one_graph(family, implementation, dtype):
    skip_where_transformers_fails(implementation, dtype)
    model = small(family, implementation, dtype)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(tokens()).logits
    assert relative_error(compiled(tokens()).logits, expected) < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("implementation", COMPILABLE)
def test_a_training_step_is_one_graph_with_the_router_losses(implementation):
    skip_where_transformers_fails(implementation)
    model = small("phi", implementation).train()
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
    model = small("phi", COMPILABLE[-1])
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        assert relative_error(compiled(tokens()).logits, model(tokens()).logits) < 1e-5
