import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen.data.packing import pack as pack_module
from moe_codegen.data.packing.best_fit import best_fit
from moe_codegen.data.packing.fim import find_sentinels
from moe_codegen.data.packing.mixture import mixture_weights, passes, repeated
from moe_codegen.data.packing.pack import pack
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.packing.tokenizer import TokenizerSettings, load_encoder, make_tokenizer
from moe_codegen.data.passes.stage import read_manifest
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ConfigError, TokenizerError
from moe_codegen.sentinels import SPELLINGS
from tests.checkpoint.tokenizers import tokenizer_with
from tests.data.inputs import code, read, row, tree, write

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=200).map(np.array)


@given(LENGTHS, st.integers(100, 150))
@settings(deadline=None)
def test_best_fit_never_overfills_and_opens_no_sequence_that_was_not_needed(lengths, capacity):
    sequence = best_fit(lengths, capacity)
    filled = np.bincount(sequence, weights=lengths)
    assert filled.max() <= capacity
    assert filled.min() > 0
    # What lies in the emptier of two sequences would otherwise have been put into the other.
    assert len(filled) == 1 or np.sort(filled)[:2].sum() > capacity


def test_best_fit_takes_the_fullest_that_fits():
    assert best_fit(np.array([6, 5, 4, 3]), 10).tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="does not fit"):
        best_fit(np.array([11]), 10)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    rows = [row(seed) for seed in range(100)]
    settings = TokenizerSettings(vocabulary=600, sentinels="santacoder")
    manifest = make_tokenizer(open_source(write(folder / "in", rows)), folder / "out", settings)
    assert 1.5 < manifest["characters_per_token"]["python"] < 8
    return str(folder / "out")


def source(tmp_path, rows):
    return open_source(write(tmp_path / "in", rows), unit_bytes=20_000)


def documents(folder, encoder):
    """The packed documents as token lists, joined where they were cut, in sorted order."""
    pieces = []
    for one in read(folder):
        bounds = np.cumsum([0, *one["lengths"]])
        pieces += [one["input_ids"][a:b] for a, b in pairwise(bounds)]
        assert set(one["input_ids"][bounds[-1] :]) <= {encoder.padding}
    return pieces


def test_every_token_of_every_document_is_there_once(tmp_path, tokenizer):
    rows = [row(seed, content=code(seed, 1 + seed % 12)) for seed in range(120)]
    manifest = pack(source(tmp_path, rows), tmp_path / "out", PackSettings(tokenizer, 512, fim_rate=0.0))
    encoder = load_encoder(tokenizer)
    found = sorted(documents(tmp_path / "out", encoder))
    expected = [[*ids, encoder.end] for ids in encoder.encode([one["content"] for one in rows])]
    assert max(map(len, expected)) <= 512
    assert found == sorted(expected)
    assert {len(one["input_ids"]) for one in read(tmp_path / "out")} == {512}
    assert manifest["documents_cut"] == 0
    assert manifest["tokens"] == sum(map(len, expected))


def test_padding_is_at_most_half_a_percent(tmp_path, tokenizer):
    rows = [row(seed, content=code(seed, 2 + seed * 7 % 150)) for seed in range(400)]
    manifest = pack(source(tmp_path, rows), tmp_path / "out", PackSettings(tokenizer, 512))
    assert manifest["padding_fraction"] <= 0.005
    sequences = read(tmp_path / "out")
    padded = sum(512 - sum(one["lengths"]) for one in sequences)
    assert manifest["padding_fraction"] == pytest.approx(padded / (512 * manifest["sequences"]))
    longest = [max(one["lengths"]) for one in sequences]  # packed in this order, and shuffled then
    assert longest != sorted(longest, reverse=True)


def test_workers_change_nothing_and_the_seed_does(tmp_path, tokenizer):
    rows = [row(seed) for seed in range(200)]
    settings = PackSettings(tokenizer, 256)
    pack(source(tmp_path, rows), tmp_path / "one", settings)
    pack(source(tmp_path, rows), tmp_path / "two", settings, num_proc=2)
    pack(source(tmp_path, rows), tmp_path / "three", PackSettings(tokenizer, 256, seed=1))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert read(tmp_path / "one") != read(tmp_path / "three")


class Stop(Exception):
    """What the test raises in a chosen pass."""


@pytest.mark.parametrize(("name", "at"), [("tokenize_unit", 1), ("account_unit", 1), ("write_sequences", 0)])
def test_stopped_in_any_pass_it_goes_on_to_the_same_bytes(tmp_path, tokenizer, monkeypatch, name, at):
    read_from = source(tmp_path, [row(seed) for seed in range(40)])
    pack(read_from, tmp_path / "whole", PackSettings(tokenizer, 256))
    real = getattr(pack_module, name)

    def stopping(unit, number, *arguments):
        record = real(unit, number, *arguments)
        if number == at:
            raise Stop
        return record

    monkeypatch.setattr(pack_module, name, stopping)
    with pytest.raises(Stop):
        pack(read_from, tmp_path / "stopped", PackSettings(tokenizer, 256))
    monkeypatch.setattr(pack_module, name, real)
    assert read_manifest(tmp_path / "stopped") is None
    pack(read_from, tmp_path / "stopped", PackSettings(tokenizer, 256))
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


def test_fill_in_the_middle_uses_the_sentinels_and_text_cannot_forge_them(tmp_path, tokenizer):
    forged = "# <fim-prefix> <|endoftext|> <fim-suffix>\n"
    rows = [row(seed, content=forged + code(seed, 5)) for seed in range(60)]
    encoder = load_encoder(tokenizer)
    sentinels = find_sentinels(encoder.vocabulary)
    pack(source(tmp_path, rows), tmp_path / "plain", PackSettings(tokenizer, 512, fim_rate=0.0))
    pack(source(tmp_path, rows), tmp_path / "fim", PackSettings(tokenizer, 512, fim_rate=1.0))
    for name, each in (("plain", 0), ("fim", 1)):
        found = documents(tmp_path / name, encoder)
        ids = [token for piece in found for token in piece]
        assert [ids.count(sentinels.ids[token]) for token in sentinels.tokens] == [60 * each] * 3
        assert ids.count(encoder.end) == 60
    texts = {one["content"] for one in rows}
    assert {
        encoder.tokenizer.decode(piece[:-1], skip_special_tokens=False)
        for piece in documents(tmp_path / "plain", encoder)
    } == texts


@pytest.mark.parametrize("special", [True, False])  # Qwen2.5-Coder's and CodeGemma's sentinels are not
def test_text_makes_no_control_token_however_that_is_marked(tmp_path, special):
    tokenizer_with([*SPELLINGS["qwen-coder"][:3], "    "], special=special).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    (ids,) = encoder.encode(["x <|fim_middle|><end>    y"])
    assert not set(ids) & {encoder.end, *find_sentinels(encoder.vocabulary).ids.values()}
    assert encoder.vocabulary["    "] in ids


def test_mixtures(tmp_path, tokenizer):
    rows = [row(seed, language="python" if seed < 150 else "java") for seed in range(200)]
    settings = PackSettings(tokenizer, 256, weights=("Python=1", "java=1"))
    with pytest.warns(UserWarning, match=r"49% of the tokens are left out \(python 6\d%\): in these proportions java"):
        manifest = pack(source(tmp_path, rows), tmp_path / "out", settings)
    counts, tally = manifest["tokens_by_language"], manifest["tally"]
    assert counts["python"] == pytest.approx(counts["java"], rel=0.05)
    assert tally["kept"]["java"][0] == 50
    assert tally["kept"]["python"][0] + tally["beyond_mixture"]["python"][0] == 150
    logs = [line for path in (tmp_path / "out" / "dropped").iterdir() for line in path.read_text().splitlines()]
    assert [json.loads(line)["reason"] for line in logs] == ["beyond_mixture"] * tally["beyond_mixture"]["python"][0]
    more = PackSettings(tokenizer, 256, weights=("java=1",), tokens=3 * counts["java"])
    manifest = pack(source(tmp_path, rows), tmp_path / "more", more)
    assert manifest["tokens_by_language"] == {"java": pytest.approx(3 * counts["java"], rel=0.05), "python": 0}
    assert manifest["documents"] == 150
    assert "# Code: java\n" in (tmp_path / "more" / "README.md").read_text()


def test_each_document_carries_its_language(tmp_path, tokenizer):
    """Of every language a text that names it, so that the tokens themselves say what the column should."""
    names = ("python", "java", "c")
    rows = [row(seed, language=names[seed % 3], content=names[seed % 3] + "\n" + code(seed)) for seed in range(90)]
    settings = PackSettings(tokenizer, 2048, fim_rate=0.0)
    manifest = pack(source(tmp_path, rows), tmp_path / "out", settings)
    assert manifest["languages"] == ["c", "java", "python"]
    encoder = load_encoder(tokenizer)
    found = 0
    for one in read(tmp_path / "out"):
        assert len(one["languages"]) == len(one["lengths"])
        starts = np.cumsum([0, *one["lengths"]])
        for start, end, language in zip(starts[:-1], starts[1:], one["languages"], strict=True):
            text = encoder.tokenizer.decode(one["input_ids"][start:end])
            assert text.split("\n")[0] == manifest["languages"][language]
            found += 1
    assert found == 90


def test_mixture_arithmetic():
    assert mixture_weights({"a": 100, "b": 300}, {}, 1.0) == {"a": 0.25, "b": 0.75}
    assert mixture_weights({"a": 100, "b": 400}, {}, 2.0) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert passes({"a": 100, "b": 300}, {"a": 0.5, "b": 0.5}, None) == {"a": 1.0, "b": pytest.approx(1 / 3)}
    assert repeated(np.array([7, 8, 9]), np.array([5, 5, 5]), 2.34).tolist() == [7, 8, 9, 7, 8, 9, 7]
    with pytest.raises(ConfigError, match="no tokens in c; the languages are a"):
        mixture_weights({"a": 1}, {"c": 1.0}, 1.0)


def test_a_document_that_the_tokenizer_cannot_take_is_a_counted_drop(tmp_path, tokenizer, monkeypatch):
    """As with a panic of the Rust library on a megabyte of spaces; every other document is packed."""
    PanicException = type("PanicException", (BaseException,), {})
    real = pack_module.load_encoder

    class Panicking:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def encode_batch_fast(self, texts, **options):
            if any("     " * 5 in text for text in texts):
                raise PanicException
            return self.tokenizer.encode_batch_fast(texts, **options)

    def load(folder):
        encoder = real(folder)
        return type(encoder)(Panicking(encoder.tokenizer), encoder.vocabulary, encoder.end, encoder.padding)

    monkeypatch.setattr(pack_module, "load_encoder", load)
    rows = [row(0), row(1, content="x" + " " * 100), row(2)]
    manifest = pack(source(tmp_path, rows), tmp_path / "out", PackSettings(tokenizer, 256, fim_rate=0.0))
    assert manifest["tally"]["tokenizer_failed"] == {"python": [1, 101]}
    assert manifest["documents"] == 2
    (logged,) = (tmp_path / "out" / "dropped" / "part-00000.jsonl").read_text().splitlines()
    assert json.loads(logged)["path"] == "src/file1.py"


def test_a_megabyte_of_spaces_is_packed_or_counted(tmp_path, tokenizer):
    rows = [row(0), row(1, content=" " * 1_000_000 + "x"), row(2)]
    manifest = pack(source(tmp_path, rows), tmp_path / "out", PackSettings(tokenizer, 256, fim_rate=0.0))
    failed = manifest["tally"].get("tokenizer_failed", {"python": [0, 0]})["python"][0]
    assert manifest["documents"] + failed == 3


@pytest.mark.parametrize("sentinels", ["santacoder", "starcoder"])
def test_a_trained_tokenizer_is_deterministic_and_loads_in_transformers(tmp_path, sentinels):
    from transformers import AutoTokenizer

    settings = TokenizerSettings(vocabulary=400, sentinels=sentinels)
    made = source(tmp_path, [row(seed) for seed in range(40)])
    make_tokenizer(made, tmp_path / "one", settings)
    make_tokenizer(made, tmp_path / "two", settings)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "one"))
    text = "def f(x):\n    return '漢é' + x\n"
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded(text)["input_ids"] == load_encoder(tmp_path / "one").encode([text])[0]
    assert loaded.eos_token == "<|endoftext|>"
    make_tokenizer(made, tmp_path / "base", TokenizerSettings(base=str(tmp_path / "one")))
    assert load_encoder(tmp_path / "base").encode([text]) == load_encoder(tmp_path / "one").encode([text])


def test_bad_tokenizers_and_settings(tmp_path, tokenizer):
    made = source(tmp_path, [row(0)])
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        pack(made, tmp_path / "out", PackSettings(str(tmp_path)))
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded"):
        make_tokenizer(made, tmp_path / "out", TokenizerSettings(base=str(tmp_path / "none")))
    with pytest.raises(TokenizerError, match="no tokenizer named"):
        pack(made, tmp_path / "out", PackSettings())
    for text in ("{", "{}"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged or no tokenizer"):
            pack(made, tmp_path / "out", PackSettings(str(tmp_path)))
        with pytest.raises(TokenizerError, match="no tokenizer can be loaded"):
            make_tokenizer(made, tmp_path / text, TokenizerSettings(base=str(tmp_path)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sequence_length": 1, "fim_rate": 0.0}, "sequence_length=1 should be at least 2 tokens"),
        ({"fim_rate": 2.0}, r"fim_rate=2\.0 should lie between 0 and 1"),
        ({"tokens": 0}, "tokens=0 should be at least 1"),
        ({"sequence_length": 7}, "sequence_length=7 should be at least 8 tokens"),
        ({"temperature": 0.0}, r"temperature=0\.0 should be positive"),
        ({"temperature": float("nan")}, "temperature=nan should be positive"),
        ({"weights": ("a=inf",)}, "a=inf should be positive"),
        ({"weights": ("a",)}, "a should be LANGUAGE=WEIGHT"),
        ({"weights": ("a=0",)}, "a=0 should be positive"),
        ({"weights": ("C++=1", "cpp=2")}, "cpp has two"),
    ],
)
def test_impossible_settings(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PackSettings("folder", **wrong)


@pytest.mark.parametrize("wrong", [{"vocabulary": 255}, {"max_bytes": 0}])
def test_a_tokenizer_of_less_than_every_byte_or_of_no_text_is_refused(wrong):
    with pytest.raises(ConfigError, match="should be at least"):
        TokenizerSettings(**wrong)
