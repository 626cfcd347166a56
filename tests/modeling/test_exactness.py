"""A mixture of identical experts is the dense model it was made from."""

import pytest
import torch

from tests.modeling.mixture import IMPLEMENTATIONS, mixture, mixture_of, relative_error, tokens
from tests.tiny import FAMILIES, dense_model

TOLERANCE = 5e-6


def assert_same_model(moe, dense, **inputs):
    with torch.no_grad():
        actual = moe(**inputs, output_hidden_states=True)
        expected = dense(**inputs, output_hidden_states=True)
    assert len(actual.hidden_states) == len(expected.hidden_states) == dense.config.num_hidden_layers + 1
    for layer, pair in enumerate(zip(actual.hidden_states, expected.hidden_states, strict=True)):
        assert relative_error(*pair) <= TOLERANCE, f"departs at hidden state {layer}"
    assert relative_error(actual.logits, expected.logits) <= TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_hidden_state_and_the_logits_are_the_dense_models(family, implementation):
    dense = dense_model(family)
    moe = mixture_of(dense)
    moe.set_experts_implementation(implementation)
    assert_same_model(moe, dense, input_ids=tokens())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_are_the_dense_models_with_either_attention(family, attention):
    dense = dense_model(family)
    moe = mixture_of(dense)
    for model in (dense, moe):
        model.set_attn_implementation(attention)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :5] = 0
    assert_same_model(moe, dense, input_ids=tokens(), attention_mask=mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_and_sdpa_attention_agree_on_distinct_experts(family):
    moe = mixture(family)
    moe.set_attn_implementation("eager")
    eager = moe(tokens(), output_attentions=True)
    assert [tuple(each.shape) for each in eager.attentions] == [(2, 4, 12, 12)] * 3  # sdpa has none to give
    moe.set_attn_implementation("sdpa")
    assert relative_error(moe(tokens()).logits, eager.logits) < 1e-5


VARIANTS = {
    "one sparse layer": dict(moe_layers=[1]),
    "two sparse layers": dict(moe_layers=[2, 0]),
    "a shared expert": dict(shared_expert=True, shared_expert_weight=0.3),
    "every expert": dict(num_experts_per_tok=4),
    "one expert": dict(num_experts=1, num_experts_per_tok=1),
    "noisy gating": dict(router_type="noisy_top_k"),
    "jitter": dict(router_jitter_noise=0.1),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["gpt_bigcode", "phi", "qwen3"])
def test_every_variant_with_renormalised_gates_is_exact(family, variant):
    dense = dense_model(family)
    assert_same_model(mixture_of(dense, **VARIANTS[variant]), dense, input_ids=tokens())


@pytest.mark.parametrize("family", ["starcoder2", "llama"])
def test_an_ffn_without_or_with_biases_is_exact_where_the_config_says_so(family):
    field = {"starcoder2": dict(use_bias=False), "llama": dict(mlp_bias=True)}[family]
    dense = dense_model(family, **field)
    assert_same_model(mixture_of(dense), dense, input_ids=tokens())


@pytest.mark.parametrize("family", FAMILIES)
def test_distinct_experts_are_not_the_dense_model(family):
    dense = dense_model(family)
    moe = mixture_of(dense, spread=0.1)
    assert relative_error(moe(tokens()).logits, dense(tokens()).logits) > 1e-2


@pytest.mark.parametrize("fields", [dict(), dict(num_experts_per_tok=1)])
@pytest.mark.parametrize("family", ["gpt_bigcode", "phi", "llama"])
def test_without_renormalisation_the_ffn_is_scaled_by_the_chosen_probability(family, fields):
    dense = dense_model(family, **{{"gpt_bigcode": "n_layer"}.get(family, "num_hidden_layers"): 1})
    moe = mixture_of(dense, norm_topk_prob=False, **fields)
    outputs = {}
    for model in (dense, moe):
        mlp = next(module for name, module in model.named_modules() if name.endswith(".mlp"))
        mlp.register_forward_hook(lambda module, args, output, model=model: outputs.update({model: output}))
    dense(tokens())
    logits = moe(tokens(), output_router_logits=True).router_logits[0]
    kept = logits.softmax(-1).topk(moe.config.num_experts_per_tok).values.sum(-1).view(2, 12, 1)
    assert relative_error(outputs[moe], kept * outputs[dense]) <= TOLERANCE
    assert kept.max() < 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_the_sequences_on_their_own(family):
    moe = mixture(family)
    first, second = tokens(1, 5), tokens(1, 7, seed=3)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = moe(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    alone = torch.cat([moe(first).logits, moe(second).logits], 1)
    assert relative_error(packed, alone) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_near_fp32(family, dtype):
    moe = mixture(family)
    expected = moe(tokens()).logits
    actual = moe.to(dtype)(tokens()).logits
    assert actual.dtype == dtype
    # A token may change experts where two are nearly equal, so the middle of the errors is judged.
    error = (actual.float() - expected).abs().median() / expected.abs().median()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_logits_can_be_kept_for_the_last_tokens_only():
    moe = mixture("phi")
    logits = moe(tokens()).logits
    torch.testing.assert_close(moe(tokens(), logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(moe(tokens(), logits_to_keep=torch.tensor([3, 5])).logits, logits[:, [3, 5]])


def test_embeddings_can_be_given_in_place_of_ids():
    moe = mixture("llama")
    embedded = moe.get_input_embeddings()(tokens())
    torch.testing.assert_close(moe(inputs_embeds=embedded).logits, moe(tokens()).logits)
