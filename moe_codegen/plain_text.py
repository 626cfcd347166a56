"""A tokenizer that makes no control token of text: one that is spelled there is encoded as any other word."""

import json
from typing import Any

from tokenizers import Tokenizer

_WITHOUT_BLANK: dict[Any, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


def is_control(added: str) -> bool:
    """Whether a tokenizer's added token controls a model; some tokenizers add runs of blanks, which are text."""
    return bool(added.strip())


def text_only(serialised: str, *, continuing: bool = False) -> Tokenizer:
    """A tokenizer of `tokenizer.json`'s contents that makes no control token of any text, and takes all of it.

    `encode_special_tokens` alone is not enough, nor transformers' `split_special_tokens`: they affect only tokens that
    are marked as special, which the sentinels of Qwen2.5-Coder and CodeGemma are not.

    `continuing`: for text that goes on from another. The blank that Llama's and other tokenizers put before a text is
    left out, as it was for suffix and middle when Code Llama learned to fill gaps (arXiv 2308.12950).
    """
    settings: dict[str, Any] = json.loads(serialised) | {"truncation": None, "padding": None}
    for token in settings["added_tokens"]:
        token["special"] = is_control(token["content"])
    if continuing:
        settings |= {part: _without_blank(settings.get(part)) for part in ("normalizer", "pre_tokenizer")}
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.encode_special_tokens = True  # not serialised, so it is set on every load
    return tokenizer


def _without_blank(part: Any) -> Any:
    """A normaliser or pre-tokenizer, perhaps a sequence of them, that puts nothing before a text."""
    if isinstance(part, list):
        return [each for each in map(_without_blank, part) if each is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    return {name: _without_blank(value) for name, value in part.items()} | _WITHOUT_BLANK.get(part.get("type"), {})
