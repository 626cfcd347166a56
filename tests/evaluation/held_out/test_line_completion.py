"""A completed line is what greedy decoding alone writes, up to the end of the line, and is judged against the file."""

import pytest
import torch
from transformers import LlamaConfig

from moe_codegen.checkpoint import load_tokenizer
from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.held_out.line_completion import complete_places, judge, tasks_for
from moe_codegen.evaluation.held_out.line_places import Place, choose_places
from moe_codegen.generation import encode_prompt
from moe_codegen.metrics import Document
from tests import tiny
from tests.checkpoint.published import published
from tests.evaluation.repositories import FILES
from tests.modeling.mixture import mixture

LANGUAGES = {"py": "python", "java": "java", "js": "javascript", "cpp": "cpp"}
DOCUMENTS = [Document(name, "r", LANGUAGES[name.split(".")[1]], text) for name, text in FILES.items()]
TOKENIZER = tiny.tokenizer()
SETTINGS = dict(context=40, max_new_tokens=8)


def greedy(model, ids, steps, **told):
    """One token after another without a cache, until a line or the text ends."""
    written = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + written]), **told).logits[0, -1].argmax())
        if token in TOKENIZER.get_added_vocab().values():
            break
        written.append(token)
        if "\n" in TOKENIZER.decode([token]):
            break
    return TOKENIZER.decode(written).partition("\n")[0]


def penalised():
    """A model whose checkpoint asks for other than greedy decoding."""
    model = tiny.dense_model("gpt_bigcode")
    model.generation_config.repetition_penalty = 5.0
    return model


NAMES = ["python", "java", "javascript", "cpp"]
ORACLE = mixture("llama", 0.5, expert_names=NAMES, language_routing="oracle", num_experts_per_tok=1)


@pytest.mark.parametrize("model", [penalised(), mixture("llama"), ORACLE], ids=["dense", "mixture", "oracle"])
@pytest.mark.parametrize("task", ["line", "fill"])
def test_batches_write_what_greedy_decoding_alone_does(model, task):
    places = choose_places(DOCUMENTS, 2, 8000)
    done = complete_places(model, TOKENIZER, places, task, batch_size=3, **SETTINGS)
    for place, completion in zip(places, done, strict=True):
        ids = encode_prompt(TOKENIZER, place.before, place.after if task == "fill" else None, 40)
        told = {"language_ids": torch.tensor([NAMES.index(place.document.language)])} if model is ORACLE else {}
        assert completion.predicted == greedy(model, ids, 8, **told)
        assert (completion.document, completion.offset) == (place.document.name, place.offset)


@pytest.mark.parametrize("task", ["line", "fill"])
def test_the_blank_that_begins_what_is_missing_is_kept(task):
    """Of tokens alone Llama's tokenizer drops it."""
    tokenizer = load_tokenizer(published("codellama"), LlamaConfig())
    model = tiny.dense_model("phi", lm_head_bias=True, vocab_size=len(tokenizer))
    with torch.no_grad():
        model.lm_head.bias[tokenizer.convert_tokens_to_ids("▁first")] = 1e4
    places = choose_places(DOCUMENTS, 1, None)
    done = complete_places(model, tokenizer, places, task, batch_size=2, context=40, max_new_tokens=2)
    assert {completion.predicted for completion in done} == {" first first"}


def place_in(name, missing):
    document = next(document for document in DOCUMENTS if document.name == name)
    before, _, after = document.text.partition(missing)
    return Place(document, len(before), before, missing, after)


def test_blanks_at_the_ends_do_not_count():
    place = place_in("beta/add.py", " = first + second")
    right = judge(place, "line", "= first + second ")
    assert (right.exact, right.similarity, right.parses) == (True, 1.0, True)


def test_a_near_miss_is_similar_and_may_still_parse():
    near = judge(place_in("beta/add.py", " = first + second"), "fill", " = first - second")
    assert not near.exact
    assert near.similarity == pytest.approx(1 - 1 / len("= first + second"))
    assert near.parses
    assert not judge(place_in("beta/add.py", " = first + second"), "fill", " = first + (").parses


def test_a_file_that_never_parsed_says_nothing_of_the_model():
    assert judge(place_in("gamma/Broken.java", " size( {"), "line", " size;").parses is None


def test_without_sentinels_no_gap_is_filled():
    assert tasks_for(TOKENIZER) == ["line", "fill"]
    plain = tiny.tokenizer()
    plain.get_vocab = lambda: {"a": 0}
    assert tasks_for(plain) == ["line"]


def test_positions_without_room_for_a_prompt_are_refused():
    with pytest.raises(ConfigError, match="max_new_tokens=60 of 64"):
        complete_places(
            tiny.dense_model("gpt_bigcode"), TOKENIZER, [], "line", context=9, max_new_tokens=60, batch_size=1
        )
