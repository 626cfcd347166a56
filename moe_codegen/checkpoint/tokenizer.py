"""A checkpoint's tokenizer, without running code from the checkpoint's folder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig


def load_tokenizer(folder: Path, config: PreTrainedConfig) -> Any | None:
    """The tokenizer stored in `folder`; None where there is none.

    `config` is the configuration the library made of the checkpoint's own, which may name Python code (`auto_map`)
    that transformers would ask to run.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
