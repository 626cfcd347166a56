"""From a user's text to token ids: nothing in it becomes a control token, and only we write sentinels."""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from moe_codegen.errors import ConfigError
from moe_codegen.sentinels import find_spelling

NEVER_WRITTEN = "\U0010fffe"  # a code point that Unicode promises never to assign


@dataclass(frozen=True)
class Sentinels:
    """The token ids around the parts of a fill-in-the-middle prompt (arXiv 2207.14255).

    Attributes:
        prefix, suffix, middle: what comes before each part.
        end: what a model writes after the middle, besides its end of text; None if it has no such token.
    """

    prefix: int
    suffix: int
    middle: int
    end: int | None = None

    @property
    def ids(self) -> set[int]:
        """All of them; a model that writes one has finished the middle."""
        return {self.prefix, self.suffix, self.middle} | ({self.end} if self.end is not None else set())


def find_sentinels(tokenizer: PreTrainedTokenizerBase) -> Sentinels | None:
    """The tokenizer's own fill-in-the-middle tokens, None if it has none."""
    vocabulary = tokenizer.get_vocab()
    found = find_spelling(vocabulary)
    if found is None:
        return None
    end = vocabulary.get(found.end) if found.end else None
    return Sentinels(vocabulary[found.prefix], vocabulary[found.suffix], vocabulary[found.middle], end)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, suffix: str | None = None) -> list[int]:
    """The ids of `prompt`; with `suffix`, those that ask for what stands between the two, prefix first (PSM).

    Text that looks like a control token stays text. A tokenizer that begins its texts with a token does so here.

    Raises:
        ConfigError: nothing to start from, or a suffix for a tokenizer without sentinels.
    """
    start = _start_of_text(tokenizer)
    if suffix is not None:
        sentinels = find_sentinels(tokenizer)
        if sentinels is None:
            raise ConfigError(
                "this tokenizer has no fill-in-the-middle tokens such as <fim_prefix>, so the model was not trained "
                "to fill a gap; give a prompt without a suffix"
            )
        before, after = encode_text(tokenizer, prompt), encode_text(tokenizer, suffix)
        return [*start, sentinels.prefix, *before, sentinels.suffix, *after, sentinels.middle]
    ids = [*start, *encode_text(tokenizer, prompt)]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise ConfigError("the prompt is empty, and this tokenizer has no token to begin a text with; give a prompt")
    return ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` as nothing but text."""
    if not any(token in text for token in _control_tokens(tokenizer)):
        return tokenizer(text, add_special_tokens=False).input_ids
    return _without_control_tokens(tokenizer).encode(text, add_special_tokens=False).ids


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    # Some tokenizers add runs of blanks as tokens; those are text.
    return [token for token in tokenizer.get_added_vocab() if token.strip()]


def _without_control_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer to which a control token's spelling means nothing.

    transformers' `split_special_tokens` is not enough: Qwen's sentinels, for one, are not marked as special.
    """
    original: Tokenizer = tokenizer.backend_tokenizer
    own_vocabulary = original.get_vocab(with_added_tokens=False)
    settings: dict[str, Any] = json.loads(original.to_str())
    kept = []
    for token in settings["added_tokens"]:
        if token["content"].strip():
            if token["content"] in own_vocabulary:
                continue
            # Added tokens are numbered in order, so that to leave one out would renumber the blanks after it.
            token["content"] = f"{NEVER_WRITTEN}{token['id']}{NEVER_WRITTEN}"
        kept.append(token)
    return Tokenizer.from_str(json.dumps({**settings, "added_tokens": kept}))


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer("x").input_ids
    plain = tokenizer("x", add_special_tokens=False).input_ids
    # What the tokenizer adds in front; what it may add behind would end the text.
    return ids[: len(ids) - len(plain)] if ids[len(ids) - len(plain) :] == plain else []
