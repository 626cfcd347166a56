"""A model that is told the language: a learned prior, or hard routing to the language's own expert."""

import pytest
import torch

from moe_codegen import MoEForCausalLM
from moe_codegen.errors import ConfigError
from moe_codegen.moe import Experts, RoutingRecorder
from tests.modeling.mixture import mixture, tokens
from tests.tiny import FAMILIES

NAMES = dict(num_experts=2, expert_names=["python", "java"])
ORACLE = dict(NAMES, language_routing="oracle", num_experts_per_tok=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_oracle_computes_each_row_with_its_own_expert_alone(family):
    model = mixture(family, **ORACLE)
    logits = model(tokens(), language_ids=torch.tensor([0, 1])).logits
    for row, expert in enumerate((0, 1)):
        alone = mixture(family, **ORACLE)
        for module in alone.modules():
            if isinstance(module, Experts):
                for parameter in module.parameters():
                    parameter.data[1 - expert] = 7.0  # would show if it were used
        again = alone(tokens(), language_ids=torch.tensor([expert, expert])).logits
        torch.testing.assert_close(again[row], logits[row])


def test_language_ids_may_differ_from_token_to_token():
    model, ids = mixture("phi", **ORACLE), torch.zeros(2, 12, dtype=torch.int64)
    ids[0, 5:], ids[1] = 1, 1
    with RoutingRecorder(model) as recorder:
        model(tokens(), language_ids=ids)
    assert all(torch.equal(ids_TK[:, 0], ids.flatten()) for ids_TK in recorder.ids_LTK)


def test_an_oracle_that_is_not_told_the_language_says_so():
    with pytest.raises(ConfigError, match="pass language_ids"):
        mixture("phi", **ORACLE)(tokens())


@pytest.mark.parametrize("family", ["gpt_bigcode", "llama"])
def test_generation_keeps_to_the_language_of_its_row(family):
    model = mixture(family, **ORACLE)
    with RoutingRecorder(model) as recorder:
        arguments = dict(max_new_tokens=4, do_sample=False, num_beams=2)
        model.generate(tokens(), attention_mask=torch.ones(2, 12), language_ids=torch.tensor([1, 0]), **arguments)
    assert recorder.ids_LTK[0].flatten().tolist() == [1, 1, 0, 0]  # two beams a row


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_goes_on_in_the_language_of_the_prompts_last_token(use_cache):
    model, language_ids = mixture("llama", **ORACLE), torch.tensor([[0] * 6 + [1] * 6, [1] * 6 + [0] * 6])
    written = model.generate(
        tokens(), language_ids=language_ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache
    )
    longer = torch.cat([language_ids, language_ids[:, -1:].expand(2, 4)], dim=1)
    logits = model(written, language_ids=longer).logits
    assert torch.equal(logits[:, 11:-1].argmax(-1), written[:, 12:])


def test_in_training_there_is_a_language_for_each_row_or_each_token():
    with pytest.raises(ConfigError, match=r"\(2, 11\) for tokens \(2, 12\); give \(B,\) or \(B, S\)"):
        mixture("phi", **ORACLE).train()(tokens(), language_ids=torch.zeros(2, 11, dtype=torch.int64))


def test_a_prior_is_added_when_an_existing_mixture_is_loaded_and_then_kept(tmp_path):
    mixture("phi", **NAMES).save_pretrained(tmp_path / "plain")
    told = MoEForCausalLM.from_pretrained(tmp_path / "plain", language_routing="prior", language_prior_init=3.0)
    priors = [value for name, value in told.named_parameters() if name.endswith("language_prior")]
    assert len(priors) == 3
    assert all(torch.equal(prior, 3 * torch.eye(2)) for prior in priors)
    torch.testing.assert_close(told(tokens()).logits, mixture("phi", **NAMES)(tokens()).logits)
    with torch.no_grad():
        priors[0].add_(1.0)
    told.save_pretrained(tmp_path / "told")
    again = MoEForCausalLM.from_pretrained(tmp_path / "told")
    language = torch.tensor([0, 1])
    torch.testing.assert_close(
        again(tokens(), language_ids=language).logits, told(tokens(), language_ids=language).logits
    )


def test_checkpointing_routes_by_language_again_in_the_backward_pass():
    plain, checked = (mixture("phi", **NAMES, language_routing="prior").train() for _ in range(2))
    checked.gradient_checkpointing_enable()
    for model in (plain, checked):
        model(tokens(), labels=tokens(), language_ids=torch.tensor([1, 0]), use_cache=False).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), checked.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
        assert "language_prior" not in name or one.grad.any()
