"""The router: weights, ids, noise."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_codegen.moe import TopKRouter


def router(experts=4, top_k=2, hidden=8, **fields):
    plain = dict(norm_topk_prob=True, router_jitter_noise=0.0, router_type="top_k", router_logit_scale=0.0)
    languages = dict(language_routing="none", expert_names=None, expert_granularity=1)
    settings = plain | languages | fields
    made = TopKRouter(SimpleNamespace(num_experts=experts, num_experts_per_tok=top_k, hidden_size=hidden, **settings))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return made.eval()


def hidden(tokens=20, width=8):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))


@given(
    st.integers(1, 9).flatmap(lambda experts: st.tuples(st.just(experts), st.integers(1, experts))),
    st.integers(1, 12),
    st.booleans(),
)
def test_the_k_largest_of_the_softmax_are_taken_strongest_first(sizes, tokens, renormalise):
    experts, top_k = sizes
    gate = router(experts, top_k, norm_topk_prob=renormalise)
    routing = gate(hidden(tokens))
    probabilities = (hidden(tokens).double() @ gate.weight.detach().double().T).softmax(-1)
    for token in range(tokens):
        order = sorted(range(experts), key=lambda e: -probabilities[token, e].item())[:top_k]
        assert routing.ids_TK[token].tolist() == order
        weights = probabilities[token, order]
        weights = weights / weights.sum() if renormalise else weights
        torch.testing.assert_close(routing.weights_TK[token].double(), weights, rtol=1e-5, atol=1e-7)


def test_a_bf16_router_decides_in_fp32():
    gate = router().bfloat16()
    routing = gate(hidden().bfloat16())
    assert routing.logits_TE.dtype == routing.weights_TK.dtype == torch.float32
    torch.testing.assert_close(routing.logits_TE, hidden().bfloat16().float() @ gate.weight.float().T)


def test_autocast_does_not_round_the_logits():
    gate = router()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = gate(hidden()).logits_TE
    torch.testing.assert_close(under, gate(hidden()).logits_TE, rtol=0, atol=0)


def test_switch_routing_weights_the_one_expert_by_its_probability():
    gate = router(top_k=1, norm_topk_prob=False)
    routing = gate(hidden())
    torch.testing.assert_close(routing.weights_TK, routing.logits_TE.softmax(-1).max(-1, keepdim=True).values)


@pytest.mark.parametrize("fields", [dict(router_type="noisy_top_k"), dict(router_jitter_noise=0.1)])
def test_noise_is_for_training_only(fields):
    gate = router(**fields)
    assert torch.equal(gate(hidden()).logits_TE, gate(hidden()).logits_TE)
    torch.testing.assert_close(gate(hidden()).logits_TE, router()(hidden()).logits_TE)
    gate.train()
    assert not torch.equal(gate(hidden()).logits_TE, gate(hidden()).logits_TE)


def test_noisy_gating_adds_gaussian_noise_of_the_learned_deviation():
    # eq. 4 of arXiv 1701.06538: H(x) = x W_g + N(0, 1) softplus(x W_noise), noise drawn for each token and expert.
    gate = router(router_type="noisy_top_k").train()
    token = hidden(1)
    logits = gate(token.expand(100_000, -1)).logits_TE.detach()
    torch.testing.assert_close(logits.mean(0), (token @ gate.weight.T)[0], rtol=0, atol=0.05)
    deviation = torch.log1p(torch.exp(token @ gate.noise_weight.T))[0]
    torch.testing.assert_close(logits.std(0), deviation, rtol=0.02, atol=0)
    assert torch.corrcoef(logits.T).fill_diagonal_(0).abs().max() < 0.02


def test_noisy_gates_are_a_softmax_over_the_kept_experts():
    # eq. 3 and 5: softmax(KeepTopK(H(x), k)).
    routing = router(router_type="noisy_top_k").train()(hidden())
    kept = torch.full_like(routing.logits_TE, -torch.inf)
    kept.scatter_(1, routing.ids_TK, routing.logits_TE.gather(1, routing.ids_TK))
    torch.testing.assert_close(routing.weights_TK, kept.softmax(-1).gather(1, routing.ids_TK))
    assert torch.equal(routing.ids_TK, routing.logits_TE.topk(2).indices)


def test_noisy_gating_teaches_the_noise():
    gate = router(router_type="noisy_top_k").train()
    gate(hidden()).weights_TK[:, 0].sum().backward()
    assert gate.noise_weight.grad.abs().max() > 0


def test_jitter_scales_the_routers_input_by_at_most_its_eps():
    gate = router(experts=8, hidden=8, router_jitter_noise=0.1).train()
    gate.weight.data = torch.eye(8)  # logits are then the jittered input itself
    ratio = gate(hidden(1000)).logits_TE / hidden(1000)
    assert 0.9 <= ratio.min() < 0.902
    assert 1.098 < ratio.max() <= 1.1
    assert ratio.mean().item() == pytest.approx(1, abs=0.01)


def test_normalised_logits_have_mean_0_and_the_deviation_asked_for_however_large_they_were():
    gate, plain = router(router_logit_scale=1.5), router()
    for scale in (0.01, 1, 100):
        logits = gate(hidden() * scale).logits_TE
        torch.testing.assert_close(logits.mean(-1), torch.zeros(20), atol=1e-5, rtol=0)
        raw = (hidden().double() @ plain.weight.detach().double().T) * scale
        expected = 1.5 * (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)


def told(ids, **fields):
    gate = router(expert_names=["python", "java"], **fields)
    gate.language_ids_T = torch.tensor(ids)
    return gate


def test_a_prior_adds_its_languages_row_and_nothing_where_there_is_no_language():
    gate = told([0, 1, -100, 1] * 5, language_routing="prior")
    added = gate(hidden()).logits_TE - hidden() @ gate.weight.T
    expected = torch.stack([gate.language_prior[0], gate.language_prior[1], torch.zeros(4), gate.language_prior[1]])
    torch.testing.assert_close(added, expected.repeat(5, 1), atol=1e-5, rtol=1e-5)
    added.sum().backward()
    torch.testing.assert_close(gate.language_prior.grad, torch.tensor([[5.0], [10.0]]).expand(2, 4))


@pytest.mark.parametrize("granularity", [1, 2])
def test_an_oracle_gives_every_token_its_languages_expert_in_all_its_pieces(granularity):
    ids = [0, 1, 1, 0] * 5
    experts = 2 * granularity
    gate = told(ids, experts=experts, top_k=granularity, language_routing="oracle", expert_granularity=granularity)
    routing = gate(hidden())
    for token, language in enumerate(ids):
        pieces = set(range(language * granularity, (language + 1) * granularity))
        assert set(routing.ids_TK[token].tolist()) == pieces
    torch.testing.assert_close(routing.weights_TK.sum(-1), torch.ones(20))


def test_an_oracle_leaves_tokens_of_no_language_to_the_learned_router():
    gate = told([-1] * 20, experts=2, top_k=1, language_routing="oracle")
    free = router(experts=2, top_k=1)
    assert torch.equal(gate(hidden()).ids_TK, free(hidden()).ids_TK)
