"""A tokenizer that makes no control token of text: one that is spelled there is encoded as any other word."""

import json
from typing import Any

from tokenizers import Tokenizer


def is_control(added: str) -> bool:
    """Whether a tokenizer's added token controls a model; some tokenizers add runs of blanks, which are text."""
    return bool(added.strip())


def text_only(serialised: str) -> Tokenizer:
    """A tokenizer of `tokenizer.json`'s contents that makes no control token of any text.

    `encode_special_tokens` alone is not enough, nor transformers' `split_special_tokens`: they affect only tokens that
    are marked as special, which the sentinels of Qwen2.5-Coder and CodeGemma are not.
    """
    settings: dict[str, Any] = json.loads(serialised)
    for token in settings["added_tokens"]:
        token["special"] = is_control(token["content"])
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.encode_special_tokens = True  # not serialised, so it is set on every load
    return tokenizer
