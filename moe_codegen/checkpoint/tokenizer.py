"""A checkpoint's tokenizer, without running code from its folder; and text as tokens, none of it a control token."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from moe_codegen.plain_text import is_control, text_only


def load_tokenizer(folder: Path, config: PreTrainedConfig | None = None) -> Any | None:
    """The tokenizer stored in `folder`; None where there is none.

    `config` is the configuration the library made of the checkpoint's own [read from the folder], which may name
    Python code (`auto_map`) that transformers would ask to run.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").exists():
        # As it stands, as `data pack` reads it. The class that is named beside it may make other rules of its own for
        # these tokens: Llama's, which DeepSeek-Coder names, too, loses blanks.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, continuing: bool = False) -> list[int]:
    """The ids of `text` as nothing but text; `continuing`: without the blank that some tokenizers begin a text with."""
    return encode_with_offsets(tokenizer, text, continuing=continuing).ids


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str, *, continuing: bool = False) -> Encoding:
    """The tokens of `text` as `encode_text`: their `ids`, and as `offsets` the characters each stands for."""
    if not continuing and not any(token in text for token in tokenizer.get_added_vocab() if is_control(token)):
        return tokenizer(text, add_special_tokens=False, verbose=False).encodings[0]
    return _text_only(tokenizer.backend_tokenizer, continuing).encode(text, add_special_tokens=False)


@lru_cache(maxsize=2)  # both of one tokenizer; a large vocabulary takes long to read
def _text_only(tokenizer: Tokenizer, continuing: bool) -> Tokenizer:
    return text_only(tokenizer.to_str(), continuing=continuing)
