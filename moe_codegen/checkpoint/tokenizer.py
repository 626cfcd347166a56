"""A checkpoint's tokenizer, without running code from its folder; and text as tokens, none of it a control token."""

from pathlib import Path
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from moe_codegen.plain_text import is_control, text_only


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
    if not any(token in text for token in tokenizer.get_added_vocab() if is_control(token)):
        return tokenizer(text, add_special_tokens=False, verbose=False).encodings[0]
    return text_only(tokenizer.backend_tokenizer.to_str()).encode(text, add_special_tokens=False)
