"""How routers start: random ones as asked for, ones from text that know their experts' text."""

import random

import pytest
import torch

from moe_codegen import MoEForCausalLM, upcycle
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.upcycle.router import InputStatistics, random_router, router_from_text
from moe_codegen.upcycle.texts import read_router_data
from tests.tiny import tokenizer
from tests.upcycle.checkpoints import copy_of, dense, tensors_of, tuned

# Three "languages" of a few words each, so that even a random model sees different tokens in them.
WORDS = {"py": "def return self add", "js": "class push items stack", "op": "{ } ( ) ; ,"}


def texts(seed, count=6):
    generator = random.Random(seed)
    return {
        name: [" ".join(generator.choices(words.split(), k=30)) for _ in range(count)] for name, words in WORDS.items()
    }


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return {name: tuned(dense("phi"), folder / name, seed, size=0.02) for seed, name in enumerate(WORDS)}


@pytest.mark.parametrize("init", ["hidden", "centroid", "ridge"])
def test_a_router_from_text_sends_new_text_to_its_expert(init, experts, tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", experts=experts, router=init, router_data=texts(0))
    model = MoEForCausalLM.from_pretrained(tmp_path / "moe")
    encode = tokenizer()
    for label, pieces in enumerate(texts(1).values()):
        ids = encode(pieces[0], return_tensors="pt").input_ids[:, :64]
        with torch.inference_mode():
            router_logits = model(ids, output_router_logits=True).router_logits
        first = torch.stack([logits.argmax(dim=-1) for logits in router_logits])
        # Chance is a third; tokens such as the space are common to all.
        assert (first == label).float().mean() > 0.6, (label, first)


@pytest.mark.parametrize("init", ["hidden", "centroid", "ridge"])
def test_the_average_token_favours_no_expert(init):
    """Without this an expert whose direction happens to point along what all tokens share would take them all."""
    generator = torch.Generator().manual_seed(0)
    common = 5 * torch.randn(16, generator=generator)
    statistics = InputStatistics.empty(3, 16, with_gram=True)
    means = common + torch.randn(3, 16, generator=generator)
    for label, mean in enumerate(means):
        # More text of one kind must be no advantage.
        statistics.add(mean + 0.5 * torch.randn(200 * (label + 1), 16, generator=generator), label)
    router = router_from_text(init, statistics)
    logits = means @ router.t()
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]
    x = means[:, None] + 0.5 * torch.randn(3, 500, 16, generator=generator)
    right = (x @ router.t()).argmax(dim=2) == torch.arange(3)[:, None]
    assert right.float().mean(dim=1).min() > 0.85


def test_normal_routers_have_the_deviation_asked_for():
    rows = random_router("normal", 64, 512, 0.05, seed=0, layer=3)
    assert rows.std().item() == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(rows, random_router("normal", 64, 512, 0.05, seed=0, layer=4))
    assert torch.equal(rows, random_router("normal", 64, 512, 0.05, seed=0, layer=3))


def test_orthogonal_rows_are_so_and_as_long_as_normal_ones():
    rows = random_router("orthogonal", 8, 256, 0.02, seed=0, layer=0)
    torch.testing.assert_close(rows @ rows.t(), torch.eye(8) * 256 * 0.02**2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["normal", "orthogonal"])
def test_the_pieces_of_one_ffn_have_equal_rows_so_that_they_are_chosen_together(init, tmp_path):
    upcycle(dense("phi"), tmp_path / "moe", num_experts=8, top_k=4, granularity=2, router=init)
    gate = tensors_of(tmp_path / "moe")["model.layers.0.mlp.gate.weight"]
    assert torch.equal(gate[::2], gate[1::2])
    assert len(gate.unique(dim=0)) == 4


def test_a_router_from_text_does_not_depend_on_the_order_of_the_texts(experts, tmp_path):
    data = texts(0)
    upcycle(dense("phi"), tmp_path / "a", experts=experts, router="ridge", router_data=data)
    upcycle(dense("phi"), tmp_path / "b", experts=experts, router="ridge", router_data=dict(reversed(data.items())))
    name = "model.layers.0.mlp.gate.weight"
    assert torch.equal(tensors_of(tmp_path / "a")[name], tensors_of(tmp_path / "b")[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "ridge"}, "needs router_data: texts for each of py, js, op"),
        ({"router": "ridge", "router_data": {"py": ["a"], "js": ["b"]}}, "exactly the experts py, js, op; see op"),
        ({"router": "ridge", "router_data": {**texts(0), "c": ["x"]}}, "see c"),
        ({"router": "ridge", "router_data": {**texts(0), "py": []}}, "see py"),
        ({"router": "ridge", "router_data": {**texts(0), "py": [""]}}, "see py"),
        ({"router": "ridge", "router_data": {**texts(0), "py": "text"}}, r"router_data\['py'\] is one string"),
        ({"router_data": texts(0)}, "looks at no text; leave out router_data"),
        ({"router": "gate"}, "router='gate' is not known; use 'normal'"),
        ({"experts": None, "router": "ridge", "router_data": texts(0)}, "copies have none; use 'normal'"),
    ],
)
def test_texts_that_do_not_fit_are_refused(options, message, experts, tmp_path):
    with pytest.raises(ConfigError, match=message):
        upcycle(dense("phi"), tmp_path / "moe", **{"experts": experts, **options})
    assert not list(tmp_path.iterdir())


def test_a_router_from_text_needs_a_tokenizer_and_says_so(experts, tmp_path):
    source = copy_of(dense("phi"), tmp_path / "mute")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer, which a router from text needs"):
        upcycle(source, tmp_path / "moe", experts=experts, router="hidden", router_data=texts(0))
    assert list(tmp_path.iterdir()) == [source]


def test_texts_are_read_from_lines_or_folders(tmp_path):
    expected = {"js": ["c"], "py": ["a", "b\u2028"]}
    lines = tmp_path / "texts.jsonl"
    lines.write_text(
        '{"expert": "js", "text": "c"}\n{"expert": "py", "text": "a"}\n\n{"expert": "py", "text": "b\u2028"}\n'
    )
    assert read_router_data(lines) == expected
    for name, pieces in expected.items():
        (tmp_path / "texts" / name / "deep").mkdir(parents=True)
        for index, piece in enumerate(pieces):
            (tmp_path / "texts" / name / "deep" / f"{index}.txt").write_text(piece)
    (tmp_path / "texts" / "README").write_text("not a folder")
    assert read_router_data(tmp_path / "texts") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"expert": "a"}', "line 1 is not"),
        ('{"expert": "a", "text": "x"}\nplain', "line 2 is not"),
        ("[1]", "line 1 is not"),
        ('{"expert": "a", "text": 3}', "line 1 is not"),
        ('{"expert": ["a"], "text": "x"}', "line 1 is not"),
        ("", "holds no texts"),
    ],
)
def test_lines_that_are_no_texts_are_named(content, message, tmp_path):
    (tmp_path / "texts.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_router_data(tmp_path / "texts.jsonl")


def test_texts_that_are_not_there_say_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; give a JSONL file, or a folder"):
        read_router_data(tmp_path / "nowhere")
