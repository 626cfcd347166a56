"""`experts_implementation="moe_codegen"` gives what eager gives."""

import importlib
import inspect
import types
from pathlib import Path

import pytest
import torch
import transformers
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
def test_matches_eager_in_logits_and_gradients(config_class, model_class):
    model = _build(config_class, model_class)
    eager = _logits_and_gradients(model, "eager")
    ours = _logits_and_gradients(model, "moe_codegen")
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu"])
def test_every_activation(activation):
    model = _build(*FAMILIES[0], hidden_act=activation)
    eager = _logits_and_gradients(model, "eager")
    ours = _logits_and_gradients(model, "moe_codegen")
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_kernels_are_what_runs(monkeypatch):
    calls = []
    real = implementation.expert_ffn
    monkeypatch.setattr(implementation, "expert_ffn", lambda *a, **k: calls.append(k["activation"]) or real(*a, **k))
    _logits_and_gradients(_build(*FAMILIES[0]), "moe_codegen")
    assert calls == ["silu", "silu"]


def test_experts_the_op_does_not_know_run_in_its_parts(monkeypatch):
    """gpt-oss: an interleaved, clamped gate, transposed weights, biases."""
    products = []
    real = implementation.grouped_gemm
    monkeypatch.setattr(implementation, "grouped_gemm", lambda *args: products.append(args) or real(*args))
    model = _build(GptOssConfig, GptOssForCausalLM, intermediate_size=24)
    eager = _logits_and_gradients(model, "eager")
    ours = _logits_and_gradients(model, "moe_codegen")
    assert len(products) == 4
    for name, value in eager.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


class _Config(types.SimpleNamespace):
    """Answers whatever an experts module may ask of its configuration."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        answers = {"act": "silu", "expert": 4, "top_k": 2, "limit": 0.5, "cap": 0.5, "alpha": 1.7, "eps": 1e-5}
        answers |= {"latent": None, "intermediate": 24, "hidden": 32}
        return next(value for part, value in answers.items() if part in name)


def _experts_classes():
    """Every class in the installed transformers that runs through `experts_implementation`."""
    models = Path(transformers.__file__).parent / "models"
    for path in sorted(models.glob("*/modeling_*.py")):
        if "@use_experts_implementation" in path.read_text():
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
            yield from (
                value for value in vars(module).values()
                if inspect.isclass(value) and value.__module__ == module.__name__ and value.__name__.endswith("Experts")
            )  # fmt: skip


def _built_experts():
    for experts_class in _experts_classes():
        torch.manual_seed(0)
        config = _Config(_experts_implementation="eager", mlp_hidden_act="relu2", moe_intermediate_size=24)
        experts = experts_class(config)
        if hasattr(experts, "is_transposed"):
            for parameter in experts.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            yield experts


def test_every_experts_class_of_transformers_equals_its_eager_forward():
    for experts in _built_experts():
        model = experts.down_proj.shape[2 if experts.is_transposed else 1]
        hidden_TD, weights_TK = torch.randn(11, model, requires_grad=True), torch.rand(11, 2, requires_grad=True)
        ids_TK = torch.rand(11, 4).topk(2).indices
        results = {}
        for name in ("eager", "moe_codegen"):
            experts.config._experts_implementation = name
            out_TD = experts(hidden_TD, ids_TK, weights_TK)
            gradients = torch.autograd.grad(out_TD.sin().sum(), [hidden_TD, weights_TK, *experts.parameters()])
            results[name] = [out_TD, *gradients]
        for ours, truth in zip(results["moe_codegen"], results["eager"], strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5, msg=type(experts).__name__)


def test_which_experts_are_one_op_and_which_its_parts():
    why = {type(experts).__name__: implementation.why_not_fused(experts) for experts in _built_experts()}
    assert why["MixtralExperts"] is why["DeepseekV3Experts"] is why["Lfm2MoeExperts"] is None
    assert why["GptOssExperts"] == "stores its weights transposed"
    assert why["NemotronHExperts"] == "has the activation ReLUSquaredActivation"
    if "MuseSparkExperts" in why:  # newer than the oldest transformers that is supported
        assert why["MuseSparkExperts"] == "has a norm after each expert"
        assert why["MiniMaxM3VLExperts"] == "has a gate function of its own"


def test_a_device_without_kernels_runs_the_default_with_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(implementation, "DEVICES", ("cuda",))
    monkeypatch.setattr(implementation.logger, "warning_once", said.append)
    model = _build(*FAMILIES[0])
    eager, ours = (_logits_and_gradients(model, name) for name in ("eager", "moe_codegen"))
    assert set(said) == {"there are no kernels for cpu; experts run as grouped_mm"}
    torch.testing.assert_close(ours["logits"], eager["logits"], rtol=1e-4, atol=1e-5)


def test_parts_under_autocast():
    experts = next(experts for experts in _built_experts() if type(experts).__name__ == "GptOssExperts")
    hidden_TD, ids_TK, weights_TK = torch.randn(11, 32), torch.rand(11, 4).topk(2).indices, torch.rand(11, 2)
    truth_TD = experts(hidden_TD, ids_TK, weights_TK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_TD = implementation.experts_forward(experts, hidden_TD, ids_TK, weights_TK)
    assert out_TD.dtype == torch.float32
    assert 0 < (out_TD - truth_TD).norm() / truth_TD.norm() < 1e-2


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


@pytest.mark.parametrize(
    ("config_class", "model_class"), [FAMILIES[0], (GptOssConfig, GptOssForCausalLM)], ids=["one op", "in parts"]
)
def test_compiled_model(config_class, model_class):
    model = _build(config_class, model_class)
    eager = _logits_and_gradients(model, "eager")
    model.set_experts_implementation("moe_codegen")
    input_ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    output = torch.compile(model, fullgraph=True)(input_ids, labels=input_ids)
    output.loss.backward()
    torch.testing.assert_close(output.logits, eager["logits"], rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, eager[name], rtol=1e-5, atol=1e-6, msg=name)


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
