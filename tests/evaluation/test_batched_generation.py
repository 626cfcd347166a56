"""Completions: what `complete` writes, ended as MultiPL-E ends them, and the same in a batch of any size."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import processors
from transformers import GenerationConfig

from moe_codegen import MoEConfig, MoEForCausalLM
from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.batched_generation import Writer
from moe_codegen.evaluation.keyed_sampling import Key, KeyedSampling
from moe_codegen.evaluation.problems import Problem
from moe_codegen.evaluation.settings import ModelSettings, SamplingSettings
from moe_codegen.generation import complete
from tests import tiny
from tests.modeling.mixture import mixture
from tests.tiny import dense_model

PROBLEMS = [
    Problem("short", "py", "def add", "", ("\ndef",)),
    Problem("longer", "py", "def add(first, second):\n    return", "", ("\ndef", "\nclass")),
    Problem("longest", "py", "class Stack { push(item) { this.items", "", ("zzz",)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module", params=["dense", "mixture", "rotary"])
def model(request):
    dense = dense_model("llama" if request.param == "rotary" else "gpt_bigcode")
    if request.param != "mixture":
        return dense
    torch.manual_seed(1)
    return MoEForCausalLM(MoEConfig.from_dense(dense.config, num_experts=4)).eval()


def settings(**given):
    return SamplingSettings(**{"num_samples": 1, "temperature": 0.0, "max_tokens": 16, **given})


def test_greedy_completions_are_those_of_complete(model, tokenizer):
    batch = Writer(model, tokenizer, settings()).write([(problem, 0) for problem in PROBLEMS])
    expected = [
        complete(model, tokenizer, problem.prompt, max_new_tokens=16, stop=problem.stop_tokens) for problem in PROBLEMS
    ]
    assert batch.texts == [one.text for one in expected]


@pytest.mark.parametrize("setting", [{"repetition_penalty": 5.0}, {"num_beams": 2}], ids=str)
def test_the_checkpoints_own_generation_settings_change_nothing(tokenizer, setting, monkeypatch):
    model, requests = dense_model("gpt_bigcode"), [(problem, 0) for problem in PROBLEMS]
    expected = Writer(model, tokenizer, settings()).write(requests)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=0, **setting))
    assert Writer(model, tokenizer, settings()).write(requests).texts == expected.texts


@pytest.mark.parametrize("routing", ["oracle", "prior"])
def test_a_model_that_routes_by_language_is_told_each_problems(tokenizer, routing):
    names = dict(expert_names=["java", "python"], language_routing=routing, language_prior_init=50.0)
    model = mixture("gpt_bigcode", 0.5, num_experts=2, num_experts_per_tok=1, norm_topk_prob=False, **names)
    requests = [(replace(PROBLEMS[1], language=language, stop_tokens=()), 0) for language in ("py", "java")]
    texts = Writer(model, tokenizer, settings()).write(requests).texts
    for (problem, _), text, language in zip(requests, texts, ("python", "java"), strict=True):
        assert text == complete(model, tokenizer, problem.prompt, max_new_tokens=16, language=language).text
    assert texts[0] != texts[1]


def test_a_sample_does_not_depend_on_its_batch(model, tokenizer):
    writer = Writer(model, tokenizer, settings(temperature=1.0, top_p=0.9, num_samples=3))
    requests = [(problem, sample) for problem in PROBLEMS for sample in range(3)]
    together = writer.write(requests)
    alone = [writer.write([request]).texts[0] for request in requests]
    backwards = writer.write(requests[::-1])
    assert together.texts == alone == backwards.texts[::-1]
    assert len(set(together.texts)) == len(requests)  # and samples differ
    assert together.tokens == backwards.tokens > 0


def test_another_seed_gives_other_samples(tokenizer):
    model = dense_model("gpt_bigcode")
    texts = [
        Writer(model, tokenizer, settings(temperature=1.0, seed=seed)).write([(PROBLEMS[0], 0)]).texts
        for seed in (0, 1)
    ]
    assert texts[0] != texts[1]


def test_a_completion_ends_before_the_earliest_stop_token(tokenizer):
    model = dense_model("gpt_bigcode")
    (whole,) = Writer(model, tokenizer, settings(temperature=1.0)).write([(PROBLEMS[2], 0)]).texts
    later, earlier = whole[9:12], whole[5:7]
    stopped = Problem("longest", "py", PROBLEMS[2].prompt, "", (later, earlier))
    (text,) = Writer(model, tokenizer, settings(temperature=1.0)).write([(stopped, 0)]).texts
    assert text == whole[: min(whole.index(later), whole.index(earlier))]


def test_the_prompt_is_stripped_as_multipl_e_does_unless_told_otherwise(tokenizer):
    model = dense_model("gpt_bigcode")
    spaced = Problem("short", "py", "def add\n    ", "", ())
    stripped = Problem("short", "py", "def add", "", ())
    write = Writer(model, tokenizer, settings()).write
    assert write([(spaced, 0)]).texts == write([(stripped, 0)]).texts
    as_it_is = Writer(model, tokenizer, settings(strip_prompts=False)).write([(spaced, 0)])
    assert as_it_is.texts == [complete(model, tokenizer, spaced.prompt, max_new_tokens=16).text]


def test_a_prompt_without_room_for_an_answer_is_refused_or_cut_at_its_beginning(tokenizer):
    model = dense_model("gpt_bigcode")
    long = Problem("long", "py", "(" * 80 + "def add", "", ())
    with pytest.raises(ConfigError, match="1 of 2 prompts are longer than the model's 64 positions, the first long"):
        Writer(model, tokenizer, settings()).check([PROBLEMS[0], long])
    writer = Writer(model, tokenizer, settings(truncate_prompts=True))
    writer.check([long])
    ids = tokenizer(long.prompt).input_ids[-48:]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=4)[0, 48:]
    assert writer.write([(long, 0)]).texts == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_a_prompt_that_is_cut_still_begins_with_the_tokenizers_first_token(tokenizer):
    starting = copy.deepcopy(tokenizer)
    starting.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    model, long = dense_model("llama"), Problem("long", "py", "(" * 80 + "def add", "", ())
    ids = [0, *tokenizer(long.prompt).input_ids[-47:]]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=4)[0, 48:]
    writer = Writer(model, starting, settings(truncate_prompts=True))
    assert writer.write([(long, 0)]).texts == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_an_answer_may_fill_the_models_positions_and_no_more(tokenizer):
    model = dense_model("gpt_bigcode")
    model.generation_config.eos_token_id = None
    prompt = Problem("long", "py", "(" * 60, "", ())
    batch = Writer(model, tokenizer, settings(max_tokens=99)).write([(prompt, 0), (PROBLEMS[0], 0)])
    short = Writer(model, tokenizer, settings(max_tokens=99)).write([(prompt, 0)])
    assert short.tokens <= 4
    assert batch.texts[0] == short.texts[0]


class TestKeyedSampling:
    PROBABILITIES = torch.tensor([0.05, 0.5, 0.15, 0.3])

    def draw(self, top_p, temperature=1.0, count=20_000):
        keys = [Key(0, "problem", sample) for sample in range(count)]
        scores = self.PROBABILITIES.log().expand(count, -1) * temperature
        chosen = KeyedSampling(keys, 3, temperature, top_p)(torch.zeros(count, 3, dtype=torch.long), scores)
        assert (chosen == 0).sum(-1).eq(1).all()
        return chosen.argmax(-1).bincount(minlength=4) / count

    @pytest.mark.parametrize("temperature", [0.5, 1.0])
    def test_tokens_come_as_often_as_their_probability(self, temperature):
        torch.testing.assert_close(self.draw(1.0, temperature), self.PROBABILITIES, atol=0.012, rtol=0)

    def test_only_the_nucleus_is_drawn_from(self):
        expected = torch.tensor([0.0, 0.5, 0.0, 0.3]) / 0.8
        torch.testing.assert_close(self.draw(0.7), expected, atol=0.012, rtol=0)
        torch.testing.assert_close(self.draw(1e-9), torch.tensor([0.0, 1.0, 0.0, 0.0]))

    def test_noise_is_uniform_and_differs_by_every_part_of_its_key(self):
        numbers = torch.tensor([Key(0, "p", sample).uniform(7) for sample in range(20_000)])
        assert 0 <= numbers.min() < 0.001
        assert 0.999 < numbers.max() < 1
        assert abs(numbers.mean() - 0.5) < 0.01
        drawn = {Key(s, p, n).uniform(q) for s in (0, 1) for p in ("a", "b") for n in (0, 1) for q in (0, 1)}
        assert len(drawn) == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": 1e-40}, "temperature=1e-40 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"top_p": 0.0}, "must lie above 0"),
        ({"num_samples": 2}, "at temperature 0 would be all the same"),
    ],
)
def test_settings_that_cannot_hold_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        settings(**given)


@pytest.mark.parametrize("device", ["tpu", "meta"])
def test_a_device_that_cannot_compute_is_refused_with_the_settings(device):
    with pytest.raises(ConfigError, match=f"device='{device}' cannot be used here"):
        ModelSettings(device=device)
