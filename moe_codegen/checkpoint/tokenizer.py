"""A checkpoint's tokenizer, without running code from its folder; and text as tokens, none of it a control token."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

NEVER_WRITTEN = "\U0010fffe"  # a code point that Unicode promises never to assign


def load_tokenizer(folder: Path, config: PreTrainedConfig) -> Any | None:
    """The tokenizer stored in `folder`; None where there is none.

    `config` is the configuration the library made of the checkpoint's own, which may name Python code (`auto_map`)
    that transformers would ask to run.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` as nothing but text."""
    return encode_with_offsets(tokenizer, text).ids


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoding:
    """The tokens of `text` as nothing but text: their `ids`, and as `offsets` the characters each stands for."""
    if not any(token in text for token in _control_tokens(tokenizer)):
        return tokenizer(text, add_special_tokens=False, verbose=False).encodings[0]
    return _without_control_tokens(tokenizer).encode(text, add_special_tokens=False)


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
