"""From a user's text to token ids: nothing in it becomes a control token, and only we write sentinels."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from moe_codegen.checkpoint import encode_text
from moe_codegen.errors import ConfigError
from moe_codegen.sentinels import find_spelling


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


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, suffix: str | None = None, max_tokens: int | None = None
) -> list[int]:
    """The ids of `prompt`; with `suffix`, those that ask for what stands between the two, prefix first (PSM).

    Text that looks like a control token stays text. A tokenizer that begins its texts with a token does so here. Where
    it would be more than `max_tokens`, what is kept lies nearest to the answer: the end of `prompt`, and in equal
    parts the start of `suffix`.

    Raises:
        ConfigError: nothing to start from, or a suffix for a tokenizer without sentinels.
    """
    start, before = _start_of_text(tokenizer), encode_text(tokenizer, prompt)
    if suffix is not None:
        sentinels = find_sentinels(tokenizer)
        if sentinels is None:
            raise ConfigError(
                "this tokenizer has no fill-in-the-middle tokens such as <fim_prefix>, so the model was not trained "
                "to fill a gap; give a prompt without a suffix"
            )
        after = encode_text(tokenizer, suffix, continuing=True)
        if max_tokens is not None:
            room = max_tokens - len(start) - 3
            kept_after = min(len(after), max(room // 2, room - len(before)))
            before, after = _last(before, room - kept_after), after[:kept_after]
        return [*start, sentinels.prefix, *before, sentinels.suffix, *after, sentinels.middle]
    if max_tokens is not None:
        before = _last(before, max_tokens - len(start))
    ids = [*start, *before]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise ConfigError("the prompt is empty, and this tokenizer has no token to begin a text with; give a prompt")
    return ids


def _last(ids: list[int], count: int) -> list[int]:
    return ids[max(0, len(ids) - count) :]


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer("x").input_ids
    plain = tokenizer("x", add_special_tokens=False).input_ids
    # What the tokenizer adds in front; what it may add behind would end the text.
    return ids[: len(ids) - len(plain)] if ids[len(ids) - len(plain) :] == plain else []
