"""`generate` works as for the dense model, whatever the cache, padding and search."""

from functools import cache

import pytest
import torch
from transformers import pipeline

from tests.modeling.mixture import IMPLEMENTATIONS, mixture, mixture_of, tokens
from tests.tiny import FAMILIES, dense_model, tokenizer

SETTINGS = dict(max_new_tokens=10, do_sample=False, pad_token_id=1, eos_token_id=None)


@cache
def pair(family):
    dense = dense_model(family)
    return dense, mixture_of(dense)


@cache
def distinct(family):
    return mixture(family)


@pytest.mark.parametrize("settings", [dict(), dict(cache_implementation="static"), dict(num_beams=3)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_identical_experts_say_what_the_dense_model_says(family, settings):
    dense, moe = pair(family)
    expected = dense.generate(tokens(), **SETTINGS, **settings)
    assert moe.generate(tokens(), **SETTINGS, **settings).tolist() == expected.tolist()
    assert expected.shape == (2, 22)


@pytest.mark.parametrize("settings", [dict(), dict(cache_implementation="static")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_rows_say_what_each_says_alone(family, settings):
    moe = distinct(family)
    prompts = [tokens(1, 12), tokens(1, 7, seed=3), tokens(1, 1, seed=4)]
    padded = torch.cat([torch.nn.functional.pad(prompt, (12 - prompt.shape[1], 0), value=1) for prompt in prompts])
    batch = moe.generate(padded, attention_mask=(padded != 1).long(), **SETTINGS, **settings)
    alone = torch.cat([moe.generate(prompt, **SETTINGS)[:, -10:] for prompt in prompts])
    assert batch[:, -10:].tolist() == alone.tolist()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["gpt_bigcode", "phi", "llama"])
def test_distinct_experts_say_the_same_with_and_without_a_cache(family, implementation):
    moe = distinct(family)
    moe.set_experts_implementation(implementation)
    cached = {
        kind: moe.generate(tokens(), **SETTINGS, **settings).tolist()
        for kind, settings in {
            "dynamic": dict(),
            "static": dict(cache_implementation="static"),
            "none": dict(use_cache=False),
        }.items()
    }
    assert cached["dynamic"] == cached["none"]
    assert cached["static"] == cached["none"]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_repeats_under_a_seed(family):
    moe, settings = distinct(family), SETTINGS | dict(do_sample=True, temperature=1.5, top_p=0.9)
    torch.manual_seed(5)
    first, second = (moe.generate(tokens(), **settings).tolist() for _ in range(2))
    torch.manual_seed(5)
    assert moe.generate(tokens(), **settings).tolist() == first != second


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_router_logits_asked_for_in_the_config_do_not_disturb_generation(family, cache_implementation):
    moe = mixture(family, output_router_logits=True)
    settings = SETTINGS | dict(cache_implementation=cache_implementation)
    assert moe.generate(tokens(), **settings).tolist() == distinct(family).generate(tokens(), **settings).tolist()


def test_the_text_generation_pipeline_takes_the_model():
    moe, words = distinct("gpt_bigcode"), tokenizer()
    (answer,) = pipeline("text-generation", model=moe, tokenizer=words)("def add(", do_sample=False, max_new_tokens=4)
    ids = words("def add(", return_tensors="pt")
    expected = moe.generate(**ids, do_sample=False, max_new_tokens=4, pad_token_id=1)
    assert answer["generated_text"] == words.decode(expected[0], skip_special_tokens=True)


def test_prompt_lookup_decoding_says_the_same():
    moe = distinct("llama")
    prompt = tokens(1, 12).repeat(1, 2)
    assert torch.equal(moe.generate(prompt, **SETTINGS, prompt_lookup_num_tokens=3), moe.generate(prompt, **SETTINGS))
