"""`complete` says what `generate` says, streams it, stops where it should, and knows each token's experts."""

import pytest
import torch
from transformers import GenerationConfig

from moe_codegen import MoEConfig, MoEForCausalLM
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.generation import complete, load_model, shares_of_experts
from moe_codegen.generation.completion import LEAST_TEMPERATURE
from tests import tiny
from tests.checkpoint.tokenizers import tokenizer_with
from tests.tiny import LAYOUTS, dense_model, save_dense

PROMPT = "def add(first"


@pytest.fixture(scope="module")
def dense():
    return dense_model("gpt_bigcode")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def moe(dense):
    torch.manual_seed(1)
    return MoEForCausalLM(MoEConfig.from_dense(dense.config, num_experts=4, moe_layers=[0, 2])).eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dense_checkpoint_in_any_layout_loads_and_says_the_same(layout, tmp_path):
    expected = save_dense(tmp_path, layout, torch.bfloat16)
    model, tokenizer = load_model(tmp_path, device="cpu")
    assert model.dtype == torch.bfloat16
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=0.05, atol=0.05)
    assert load_model(tmp_path, torch.float32, "cpu")[0].dtype == torch.float32
    assert model.generation_config.max_new_tokens == 12


def test_a_checkpoint_without_a_tokenizer_is_refused(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_greedy_completion_is_what_generate_gives(name, tokenizer, request):
    model = request.getfixturevalue(name)
    streamed = []
    completion = complete(model, tokenizer, PROMPT, max_new_tokens=16, on_token=streamed.append)
    prompt = torch.tensor([completion.prompt_ids])
    expected = model.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=4)[0, prompt.shape[1] :].tolist()
    ended = completion.finish_reason == "end"
    assert completion.token_ids + ([0] if ended else []) == expected
    assert streamed == completion.tokens
    assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    assert completion.seconds_to_first_token > 0


def test_what_stays_unfinished_is_streamed_too():
    tokenizer = tokenizer_with([])
    first_byte, _ = tokenizer("é").input_ids
    model = dense_model("phi", lm_head_bias=True, vocab_size=len(tokenizer))
    with torch.no_grad():
        model.lm_head.bias[first_byte] = 1e4
    streamed = []
    completion = complete(model, tokenizer, PROMPT, max_new_tokens=2, on_token=streamed.append)
    assert [token.text for token in streamed] == ["", "\ufffd\ufffd"]
    assert streamed == completion.tokens


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 4},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"repetition_penalty": 5.0},
    ],
    ids=str,
)
def test_the_checkpoints_own_generation_settings_change_nothing(setting, moe, tokenizer, monkeypatch):
    expected = complete(moe, tokenizer, PROMPT, max_new_tokens=12)
    own = GenerationConfig(eos_token_id=0, **setting)
    monkeypatch.setattr(moe, "generation_config", own)
    assert complete(moe, tokenizer, PROMPT, max_new_tokens=12).tokens == expected.tokens
    assert moe.generation_config is own


def test_experts_are_those_of_a_pass_over_the_whole_text(moe, tokenizer):
    completion = complete(moe, tokenizer, PROMPT, max_new_tokens=10)
    ids = torch.tensor([completion.prompt_ids + completion.token_ids])
    logits = moe(input_ids=ids, output_router_logits=True).router_logits
    for index, token in enumerate(completion.tokens):
        position = len(completion.prompt_ids) + index
        assert token.experts == [layer[position].topk(2).indices.tolist() for layer in logits]


def test_a_dense_model_has_no_experts(dense, tokenizer):
    assert all(token.experts is None for token in complete(dense, tokenizer, PROMPT, max_new_tokens=3).tokens)


def test_sampling_is_reproducible_and_leaves_the_callers_random_state_alone(dense, tokenizer):
    state = torch.get_rng_state()
    runs = [complete(dense, tokenizer, PROMPT, max_new_tokens=12, temperature=1.5, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].token_ids == runs[1].token_ids != runs[2].token_ids
    assert torch.equal(state, torch.get_rng_state())


def test_nearly_no_probability_mass_leaves_only_the_likeliest_token(dense, tokenizer):
    greedy = complete(dense, tokenizer, PROMPT, max_new_tokens=8)
    for settings in ({"temperature": 2.0, "top_p": 1e-6}, {"temperature": LEAST_TEMPERATURE}):
        assert complete(dense, tokenizer, PROMPT, max_new_tokens=8, **settings).token_ids == greedy.token_ids


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_stop_string_ends_the_text_and_is_not_shown(name, tokenizer, request):
    model = request.getfixturevalue(name)
    options = dict(max_new_tokens=24, temperature=1.0, seed=5)
    whole = complete(model, tokenizer, PROMPT, **options).text
    stop = whole[5:8]
    streamed = []
    completion = complete(model, tokenizer, PROMPT, stop=[stop], on_token=streamed.append, **options)
    assert completion.finish_reason == "stop"
    assert completion.text == whole[: whole.index(stop)]
    assert "".join(token.text for token in streamed) == completion.text


def test_an_end_of_text_is_not_part_of_the_text(dense, tokenizer):
    first = complete(dense, tokenizer, PROMPT, max_new_tokens=1).token_ids[0]
    dense.generation_config.eos_token_id, kept = [first], dense.generation_config.eos_token_id
    completion = complete(dense, tokenizer, PROMPT, max_new_tokens=9)
    dense.generation_config.eos_token_id = kept
    assert (completion.finish_reason, completion.text, completion.tokens_per_second) == ("end", "", None)


def test_a_gap_ends_at_any_sentinel(dense, tokenizer):
    with torch.no_grad():
        biased = dense_model("phi", lm_head_bias=True)
        biased.lm_head.bias[3] = 1e4  # <fim-suffix>
    filled = complete(biased, tokenizer, "def ", suffix="return", max_new_tokens=4)
    assert (filled.finish_reason, filled.tokens) == ("end", [])
    assert complete(biased, tokenizer, "def ", max_new_tokens=4).finish_reason == "length"


def test_the_answer_ends_where_the_positions_do(dense, tokenizer):
    completion = complete(dense, tokenizer, "(" * 60, max_new_tokens=100)
    assert len(completion.prompt_ids) == 60
    assert len(completion.prompt_ids) + len(completion.tokens) == 64
    with pytest.raises(ConfigError, match="64 positions"):
        complete(dense, tokenizer, "(" * 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1e-40}, "temperature=1e-40"),
        ({"top_p": 0}, "top_p=0"),
        ({"seed": 2**64}, "does not fit in 64 bits"),
        ({"stop": [""]}, "empty stop string"),
        ({"stop": "class"}, "stop='class' is one string; give a list of strings"),
    ],
)
def test_settings_that_cannot_hold_are_refused(options, message, dense, tokenizer):
    with pytest.raises(ConfigError, match=message):
        complete(dense, tokenizer, PROMPT, **options)


def test_a_checkpoints_own_sampling_settings_do_not_disturb_greedy(dense, tokenizer):
    kept, dense.generation_config = (
        dense.generation_config,
        type(dense.generation_config).from_dict(
            {**dense.generation_config.to_dict(), "do_sample": True, "temperature": 0.7, "top_k": 3}
        ),
    )
    completion = complete(dense, tokenizer, PROMPT, max_new_tokens=6)
    dense.generation_config = kept
    assert completion.token_ids == complete(dense, tokenizer, PROMPT, max_new_tokens=6).token_ids


def test_shares_sum_to_one_with_the_largest_first():
    assert shares_of_experts([2, 0, 2, 1]) == {2: 0.5, 0: 0.25, 1: 0.25}
    assert shares_of_experts([]) == {}


def test_a_mixture_that_routes_by_language_is_told_it(dense, tokenizer):
    names = dict(num_experts=2, num_experts_per_tok=1, expert_names=["python", "java"], language_routing="oracle")
    model = MoEForCausalLM(MoEConfig.from_dense(dense.config, **names)).eval()
    for place, language in enumerate(names["expert_names"]):
        completion = complete(model, tokenizer, PROMPT, max_new_tokens=4, language=language)
        assert {expert for token in completion.tokens for layer in token.experts for expert in layer} == {place}
    with pytest.raises(ConfigError, match="no expert is named after 'ada'; there are python, java"):
        complete(model, tokenizer, PROMPT, language="ada")
    with pytest.raises(ConfigError, match="does not route by language"):
        complete(dense, tokenizer, PROMPT, language="java")
