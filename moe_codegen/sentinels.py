"""The tokens that mark the parts of a fill-in-the-middle text (arXiv 2207.14255), as each family spells them."""

from collections.abc import Container
from typing import NamedTuple


class Spelling(NamedTuple):
    """One family's sentinels; `end` is the token that some families write after the middle."""

    prefix: str
    suffix: str
    middle: str
    end: str | None = None


SPELLINGS = {
    "santacoder": Spelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    "starcoder": Spelling("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "qwen-coder": Spelling("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # CodeGemma, too
    "deepseek-coder": Spelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 (its own bars)
    "codellama": Spelling("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
}


def find_spelling(vocabulary: Container[str]) -> Spelling | None:
    """The spelling whose three sentinels are all in a tokenizer's `vocabulary`; None if there is none."""
    for spelling in SPELLINGS.values():
        if all(token in vocabulary for token in spelling[:3]):
            return spelling
    return None
