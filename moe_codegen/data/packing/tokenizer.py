"""`tokenizer`: the base model's, or a byte-level BPE trained on the data; and encoding that cannot be tricked.

Encoding goes through the `tokenizers` library alone, so that worker processes start without transformers.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import UNKNOWN
from moe_codegen.data.reading.files import digest
from moe_codegen.data.reading.sources import Source
from moe_codegen.data.rows.batch import split_sound
from moe_codegen.errors import ConfigError, TokenizerError
from moe_codegen.plain_text import text_only
from moe_codegen.sentinels import SPELLINGS
from moe_codegen.settings import check_least, setting

_END_OF_TEXT = {"santacoder": "<|endoftext|>", "starcoder": "<|endoftext|>"}
_PADDING = {"santacoder": "<fim-pad>", "starcoder": "<fim_pad>"}
_LONGEST_BLANK = b" " * 20_000  # tokenizers have been seen to panic on a megabyte of spaces
_MEASURED_FILES = 200  # a unit, for the characters per token


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer: taken over from `base`, or trained."""

    base: str = setting("", "folder or Hub id of a model whose tokenizer is taken over; empty: train one", is_path=True)
    vocabulary: int = setting(49152, "tokens of a trained tokenizer, without the special ones")
    sentinels: str = setting("starcoder", "spelling of a trained tokenizer's special tokens: santacoder or starcoder")
    max_bytes: int = setting(100_000_000, "bytes of text to train on, spread evenly over the units of the source")

    def __post_init__(self) -> None:
        check_least(self, 256, "vocabulary")  # every byte is one
        check_least(self, 1, "max_bytes")


def make_tokenizer(
    source: Source, out: str | Path, settings: TokenizerSettings | None = None, *, quiet: bool = True
) -> Record:
    """Write a tokenizer that `transformers.AutoTokenizer` loads to `out`; returns the manifest.

    The manifest holds the characters per token by language, measured on the source.
    """
    settings = settings or TokenizerSettings()
    if settings.sentinels not in _END_OF_TEXT:
        raise ConfigError(f"sentinels={settings.sentinels!r} should be one of {', '.join(_END_OF_TEXT)}")
    contents = {"base": files_digest(settings.base)} if settings.base else {}
    return run_stage("tokenizer", source, out, settings, _make_tokenizer, contents=contents, quiet=quiet)


def _make_tokenizer(stage: Stage) -> tuple[Record, list[Record]]:
    made = stage.work / OUTPUT
    made.mkdir(exist_ok=True)
    if stage.settings.base:
        load_base(stage.settings.base).save_pretrained(made)
    else:
        _train(stage.source, stage.settings, made)
    return {"characters_per_token": _measure(stage.source, load_encoder(made))}, []


def load_base(base: str) -> Any:
    """The tokenizer of a folder or of a model on the Hub. Raises `TokenizerError` where there is none that serves."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except Exception as error:  # those of a damaged file have no common base
        raise TokenizerError(f"no tokenizer can be loaded from {base}: {error}") from error
    if not tokenizer.is_fast:
        raise TokenizerError(f"the tokenizer of {base} has no tokenizer.json; convert it with transformers first")
    return tokenizer


def _train(source: Source, settings: TokenizerSettings, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    end, padding = _END_OF_TEXT[settings.sentinels], _PADDING[settings.sentinels]
    prefix, suffix, middle, _ = SPELLINGS[settings.sentinels]
    special = [end, prefix, middle, suffix, padding]  # in SantaCoder's order
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary + len(special),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(source, settings.max_bytes), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": padding,
        "additional_special_tokens": special[1:-1],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _texts(source: Source, max_bytes: int) -> Iterator[str]:
    """Texts of the source, at most an equal share of `max_bytes` from each unit."""
    share = max_bytes / len(source.units)
    for unit in source.units:
        taken = 0
        for batch in unit.batches():
            for content in split_sound(batch)[0].rows.column("content").to_pylist():
                if _LONGEST_BLANK not in content and taken < share:
                    taken += len(content)
                    yield content.decode()
            if taken >= share:
                break


def _measure(source: Source, encoder: "Encoder") -> Record:
    """Characters per token by language, on the first files of each unit."""
    characters: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    for unit in source.units:
        batch = next(unit.batches(), None)
        rows = split_sound(batch)[0].rows.slice(0, _MEASURED_FILES) if batch is not None else None
        if rows is None:
            continue
        texts = [content.decode() for content in rows.column("content").to_pylist()]
        for language, text, ids in zip(rows.column("language").to_pylist(), texts, encoder.encode(texts), strict=True):
            if ids is not None:
                characters[language or UNKNOWN] += len(text)
                tokens[language or UNKNOWN] += len(ids)
    return {name: characters[name] / max(tokens[name], 1) for name in sorted(tokens)}


@dataclass(frozen=True)
class Encoder:
    """A tokenizer whose special tokens cannot come from text, with its end-of-text and padding tokens."""

    tokenizer: Any
    vocabulary: dict[str, int]
    end: int
    padding: int

    def encode(self, texts: list[str]) -> list[list[int] | None]:
        """The tokens of each text, a sentinel in it spelled out; None where the tokenizer itself fails."""
        try:
            return [encoded.ids for encoded in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # from Rust; it is no `Exception`
                raise
        return [None] if len(texts) == 1 else [ids for text in texts for ids in self.encode([text])]

    @cached_property
    def continuing(self) -> "Encoder":
        """The same for texts that go on from another: without the blank that some tokenizers begin a text with."""
        return replace(self, tokenizer=text_only(self.tokenizer.to_str(), continuing=True))

    def starts(self, text: str, ids: list[int]) -> np.ndarray:
        """At which character of `text` each of its tokens begins, (T,); -1 for one that begins inside a character.

        Of byte-level tokens the lengths say so, unless the text was normalised first. For others the tokenizer is
        asked, which takes twice the time of encoding.
        """
        if self._is_byte_level:
            lengths = self._bytes_of_token[ids]
            content = np.frombuffer(text.encode(), np.uint8)
            if int(lengths.sum()) == len(content):
                begins_character = (content & 0xC0) != 0x80
                begin = np.cumsum(lengths) - lengths
                return np.where(begins_character[begin], np.cumsum(begins_character)[begin] - 1, -1)
        offsets = np.array(self.tokenizer.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        ends_before = np.concatenate([[0], offsets[:-1, 1]])
        return np.where(offsets[:, 0] >= ends_before, offsets[:, 0], -1)

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether tokens are spelled with a letter a byte.

        That lengths add up is no proof: a blank that others put before the text makes up for a letter of two bytes.
        """
        return '"ByteLevel"' in json.dumps(json.loads(self.tokenizer.to_str())["decoder"])

    @cached_property
    def _bytes_of_token(self) -> np.ndarray:
        """The length of each byte-level token in bytes."""
        added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        lengths = np.zeros(max(self.vocabulary.values()) + 1, np.int64)
        for token, number in self.vocabulary.items():
            lengths[number] = len(token.encode()) if token in added else len(token)
        return lengths


def load_encoder(folder: str | Path) -> Encoder:
    """The tokenizer of a folder. Raises `TokenizerError` without tokenizer.json or end-of-text token."""
    if not str(folder):
        raise TokenizerError("no tokenizer named; give the folder of one: --tokenizer FOLDER")
    path = Path(folder, "tokenizer.json")
    if not path.is_file():
        raise TokenizerError(f"{folder} has no tokenizer.json; make it with `moe-codegen data tokenizer`")
    try:
        tokenizer = text_only(path.read_text(encoding="utf-8"))
    except Exception as error:  # no JSON, or none that the library takes
        raise TokenizerError(f"{path} is damaged or no tokenizer: {error}; make or fetch it again") from error
    tokenizer.post_processor = None  # it would add special tokens, and take blanks out of the tokens' offsets
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    config_path = path.with_name("tokenizer_config.json")
    config = json.loads(config_path.read_text()) if config_path.is_file() else {}
    end = vocabulary.get(_spelled(config.get("eos_token")) or "<|endoftext|>")
    if end is None:
        raise TokenizerError(f"the tokenizer in {folder} names no end-of-text token (eos_token)")
    return Encoder(tokenizer, vocabulary, end, vocabulary.get(_spelled(config.get("pad_token")) or "", end))


def vocabulary_hash(vocabulary: dict[str, int]) -> str:
    """The same for two tokenizers if they number the same tokens alike, however they are stored."""
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(vocabulary.items())).encode())


def files_digest(folder: str | Path) -> str:
    """A hash of the files of a tokenizer in a folder of this machine; the same for all ids of the Hub."""
    names = ("*token*.json", "vocab.*", "merges.txt", "*.model")
    paths = sorted({path for name in names for path in Path(folder).glob(name)})
    return digest([(path.name, xxhash.xxh3_128_hexdigest(path.read_bytes())) for path in paths])


def _spelled(token: Any) -> str | None:
    """A special token as `tokenizer_config.json` writes it: text, or a record with its content."""
    return token["content"] if isinstance(token, dict) else token
