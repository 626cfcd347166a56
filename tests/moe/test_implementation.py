"""`experts_implementation="moe_codegen"` gives what eager gives, or steps aside."""

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_codegen.moe import implementation

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "head_dim": 8,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

FAMILIES = [
    (MixtralConfig, MixtralForCausalLM),
    (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    (OlmoeConfig, OlmoeForCausalLM),
]


@pytest.fixture(autouse=True)
def _registered():
    implementation.register_experts_implementation()


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(implementation.logger, "warning_once", said.append)
    return said


def _build(config_class, model_class, **changes):
    torch.manual_seed(0)
    return model_class(config_class(**(SIZES | changes)))


def _logits_and_gradients(model, experts_implementation):
    model.set_experts_implementation(experts_implementation)
    model.zero_grad()
    input_ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    output = model(input_ids, labels=input_ids)
    output.loss.backward()
    return {"logits": output.logits.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(("config_class", "model_class"), FAMILIES)
def test_matches_eager_in_logits_and_gradients(config_class, model_class, warnings):
    model = _build(config_class, model_class)
    eager = _logits_and_gradients(model, "eager")
    ours = _logits_and_gradients(model, "moe_codegen")
    assert not warnings
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu"])
def test_every_activation(activation, warnings):
    model = _build(*FAMILIES[0], hidden_act=activation)
    eager = _logits_and_gradients(model, "eager")
    ours = _logits_and_gradients(model, "moe_codegen")
    assert not warnings
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_kernels_are_what_runs(monkeypatch):
    calls = []
    real = implementation.expert_ffn
    monkeypatch.setattr(implementation, "expert_ffn", lambda *a, **k: calls.append(k["activation"]) or real(*a, **k))
    _logits_and_gradients(_build(*FAMILIES[0]), "moe_codegen")
    assert calls == ["silu", "silu"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: _build(GptOssConfig, GptOssForCausalLM), "transposed"),
        (lambda: _build(*FAMILIES[0], hidden_act="quick_gelu"), "activation QuickGELUActivation"),
    ],
)
def test_other_experts_run_through_the_default_with_a_warning(build, reason, warnings):
    model = build()
    eager = _logits_and_gradients(model, "eager")
    ours = _logits_and_gradients(model, "moe_codegen")
    assert warnings
    assert all(reason in said for said in warnings)
    torch.testing.assert_close(ours["logits"], eager["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("has_post_expert_norm", True, "norm after each expert"),
        ("is_concatenated", False, "interleaves"),
    ],
)
def test_why_not(attribute, value, reason):
    experts = _build(*FAMILIES[0]).model.layers[0].mlp.experts
    assert implementation.why_not(experts) is None
    setattr(experts, attribute, value)
    assert reason in implementation.why_not(experts)


def test_a_gate_function_of_its_own_is_seen():
    experts = _build(*FAMILIES[0]).model.layers[0].mlp.experts
    own = type("OwnGate", (type(experts),), {"_apply_gate": lambda self, gate_up: gate_up})
    experts.__class__ = own
    assert implementation.why_not(experts) == "has a gate function of its own"


def test_parametrised_weights_are_read_on_every_call():
    model = _build(*FAMILIES[0])
    before = _logits_and_gradients(model, "moe_codegen")["logits"]

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(model.model.layers[0].mlp.experts, "down_proj", Doubled())
    after = _logits_and_gradients(model, "moe_codegen")["logits"]
    eager = _logits_and_gradients(model, "eager")["logits"]
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, eager, rtol=1e-5, atol=1e-6)


def test_compiled_model():
    model = _build(*FAMILIES[0])
    eager = _logits_and_gradients(model, "eager")["logits"]
    model.set_experts_implementation("moe_codegen")
    input_ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    logits = torch.compile(model, fullgraph=True)(input_ids).logits
    torch.testing.assert_close(logits, eager, rtol=1e-5, atol=1e-6)


def test_generate():
    model = _build(*FAMILIES[0]).eval()
    input_ids = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(1))
    tokens = {}
    for name in ("eager", "moe_codegen"):
        model.set_experts_implementation(name)
        tokens[name] = model.generate(input_ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens["eager"], tokens["moe_codegen"])


def test_expert_parallel_sentinels_add_nothing():
    experts = _build(*FAMILIES[0]).model.layers[0].mlp.experts
    torch.nn.init.normal_(experts.gate_up_proj, std=0.1)
    torch.nn.init.normal_(experts.down_proj, std=0.1)
    hidden_TD = torch.randn(6, 32)
    ids_TK = torch.tensor([[0, 4], [4, 4], [3, 1], [4, 2], [2, 4], [1, 0]])
    weights_TK = torch.rand(6, 2)
    ours_TD = implementation.experts_forward(experts, hidden_TD, ids_TK, weights_TK)
    masked_TK = weights_TK * (ids_TK < 4)
    truth_TD = ALL_EXPERTS_FUNCTIONS["batched_mm"](experts, hidden_TD, ids_TK.clamp(max=3), masked_TK)
    torch.testing.assert_close(ours_TD, truth_TD, rtol=1e-5, atol=1e-5)
    assert ours_TD[1].abs().max() == 0
