from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe_codegen.data.packing.fim import find_sentinels
from moe_codegen.data.packing.pieces import Cutter
from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.packing.tokenizer import Encoder, load_encoder
from moe_codegen.sentinels import SPELLINGS
from tests.checkpoint.published import FAMILIES, published
from tests.data.inputs import code

SPECIAL = ["<end>", *SPELLINGS["starcoder"][:3]]
TEXTS = [code(seed) for seed in range(20)] + ["漢字 \U0001f600 é  "] * 9
WORDS = [*"漢é\U0001f600", "load_row", "\n    ", " = ", "123"]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map("".join)


def encoder(pre_tokenizer, decoder, alphabet):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    vocabulary = tokenizer.get_vocab()
    return Encoder(tokenizer, vocabulary, vocabulary["<end>"], 0)


BYTES = encoder(
    pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
)
CHARACTERS = encoder(pre_tokenizers.Split("\n", "isolated"), decoders.Fuse(), [])
BLANKS = encoder(pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first"), "▁")


@pytest.mark.parametrize("made_by", [BYTES, CHARACTERS], ids=["bytes", "characters"])
@given(TEXT)
@settings(deadline=None)
def test_tokens_begin_where_their_text_does(made_by, text):
    (ids,) = made_by.encode([text])
    starts = made_by.starts(text, ids)
    begins = [*np.flatnonzero(starts >= 0).tolist(), len(ids)]
    places = [*starts[starts >= 0].tolist(), len(text)]
    assert starts[0] == 0
    for (one, two), (start, stop) in zip(pairwise(begins), pairwise(places), strict=True):
        assert made_by.tokenizer.decode(ids[one:two], skip_special_tokens=False) == text[start:stop]


def test_a_blank_put_before_the_text_shifts_nothing():
    """As Llama's tokenizer does; that blank and a letter of two bytes make the lengths add up to the text's."""
    text = "load_row = é"
    (ids,) = BLANKS.encode([text])
    assert [BLANKS.tokenizer.id_to_token(token) for token in ids] == ["▁load_row", "▁=", "▁é"]
    assert BLANKS.starts(text, ids).tolist() == [0, 8, 10]


def test_of_a_letter_spelled_in_bytes_the_first_alone_begins_it():
    """As Llama's tokenizer spells letters that it does not know."""
    spelled = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=spelled | {"a": 256}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made_by = Encoder(tokenizer, tokenizer.get_vocab(), 256, 0)
    (ids,) = made_by.encode(["a語a"])
    assert ids == [256, *"語".encode(), 256]
    assert made_by.starts("a語a", ids).tolist() == [0, 1, -1, -1, 2]


encoder_of = cache(lambda family: load_encoder(published(family)))


def cut(text, length, fim_rate, spm_rate=0.5, seed=0, made_by=BYTES):
    (ids,) = made_by.encode([text])
    settings = PackSettings("folder", length, fim_rate=fim_rate, spm_rate=spm_rate, seed=seed)
    return Cutter.of(made_by, settings).pieces(text, ids)


def parts(piece, made_by=BYTES):
    """Prefix, middle and suffix of a piece as text, of SPM the first two together, and whether it is that; or all."""
    ids = find_sentinels(made_by.vocabulary).ids
    sentinels = [ids[token] for token in SPELLINGS["starcoder"][:3]]
    piece = piece[:-1] if piece[-1] == made_by.end else piece
    assert [piece.count(token) for token in sentinels] in ([0] * 3, [1] * 3)
    if not set(sentinels) & set(piece):
        return made_by.tokenizer.decode(piece), "", "", False
    begin, end, fill = map(piece.index, sentinels)
    assert begin == 0 < end < fill
    stretches = piece[1:end], piece[fill + 1 :], piece[end + 1 : fill]
    return *map(made_by.tokenizer.decode, stretches), end == 1


@pytest.mark.parametrize("made_by", [BYTES, CHARACTERS], ids=["bytes", "characters"])
@given(TEXT, st.sampled_from([8, 9, 16, 64]), st.sampled_from([0.5, 1.0]), st.integers(0, 99))
@settings(deadline=None)
def test_pieces_fit_hold_all_sentinels_or_none_and_are_the_document(made_by, text, length, fim_rate, seed):
    pieces = cut(text, length, fim_rate, seed=seed, made_by=made_by)
    assert max(map(len, pieces)) <= length
    assert [piece.count(made_by.end) for piece in pieces] == [0] * (len(pieces) - 1) + [1]
    assert "".join(text for piece in pieces for text in parts(piece, made_by)[:3]) == text
    assert pieces == cut(text, length, fim_rate, seed=seed, made_by=made_by)


@pytest.mark.parametrize("family", FAMILIES)
@given(TEXT, st.sampled_from([8, 9, 16, 64]), st.integers(0, 99))
@settings(deadline=None)
def test_pieces_in_the_order_of_their_text_decode_to_the_document(family, text, length, seed):
    """With the tokenizers that begin a text with a blank, too: nowhere else do they put one."""
    made_by, text = encoder_of(family), f"def {text}"
    sentinels = find_sentinels(made_by.vocabulary)
    begin, fill, end = (sentinels.ids[token] for token in sentinels.tokens)
    ids = []
    for piece in cut(text, length, 1.0, seed=seed, made_by=made_by):
        piece = piece[:-1] if piece[-1] == made_by.end else piece
        if begin in piece:
            suffix, middle = piece.index(end), piece.index(fill)
            piece = [*piece[1:suffix], *piece[middle + 1 :], *piece[suffix + 1 : middle]]
        ids += piece
    assert made_by.tokenizer.decode(ids) == text


def test_a_character_of_more_tokens_than_a_sequence_is_cut_as_it_stands():
    """NFKC spells this one in eighteen."""
    tokenizer = Tokenizer.from_str(BYTES.tokenizer.to_str())
    tokenizer.normalizer = normalizers.NFKC()
    spelled_out = Encoder(tokenizer, BYTES.vocabulary, BYTES.end, 0)
    (ids,) = spelled_out.encode(["a\ufdfab"])
    pieces = cut("a\ufdfab", 8, 1.0, made_by=spelled_out)
    assert max(map(len, pieces)) == 8
    sentinels = find_sentinels(BYTES.vocabulary).ids.values()
    assert len([token for piece in pieces for token in piece if token not in sentinels]) == len(ids) + 1


def test_rates_and_cuts_are_as_asked_of_long_documents_too():
    """Shares within four standard errors, cuts uniform over characters; sequences are full."""
    pieces = [piece for seed in range(60) for piece in cut(code(seed, 250), 128, 0.5)]
    found = [parts(piece) for piece in pieces]
    changed = [some for some in found if some[2] or some[1]]
    assert abs(len(changed) / len(found) - 0.5) < 2 / np.sqrt(len(found))
    spm = [some for some in changed if some[3]]
    assert abs(len(spm) / len(changed) - 0.5) < 2 / np.sqrt(len(changed)) + 0.02
    psm = [list(map(len, some[:3])) for some in changed if not some[3]]
    assert np.mean([[one / sum(some) for one in some] for some in psm], axis=0) == pytest.approx([1 / 3] * 3, abs=0.03)
    assert np.mean([len(piece) == 128 for piece in pieces]) > 0.9
    assert pieces != [piece for seed in range(60) for piece in cut(code(seed, 250), 128, 0.5, seed=1)]
