"""Documents as batches of windows in which each token counts once, with a stated amount of its text before it.

Dimensions: B windows in a batch, S tokens in the longest of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_codegen.checkpoint import encode_text
from moe_codegen.errors import ConfigError, TokenizerError

LONGEST_WINDOW = 2048  # tokens, where the model's positions would allow more


@dataclass(frozen=True)
class Document:
    """A source file and where it is from. `name` is unique among the documents measured together."""

    name: str
    repository: str
    language: str
    text: str


@dataclass(frozen=True)
class EncodedDocument:
    """A document as a model's tokens; `num_bytes` is the length of its text in UTF-8."""

    name: str
    repository: str
    language: str
    ids: Sequence[int]
    num_bytes: int


@dataclass(frozen=True)
class WindowBatch:
    """Windows that go through the model together.

    Attributes:
        input_ids: (B, S) int64. Each window is some consecutive tokens of `start_id` followed by one document; what
            lies after a window's end is `start_id` again, which no token before it sees.
        counted: (B, S) bool, the document's tokens that count in this window: neither padding nor the start nor text
            that an earlier window has counted and that is context here.
        documents: for each window, the number of its document.
        places: for each window, where its first token lies in `start_id` followed by the document.
    """

    input_ids: torch.Tensor
    counted: torch.Tensor
    documents: list[int]
    places: list[int]


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[EncodedDocument]:
    """The documents' tokens, no special ones among them: a file that speaks of a sentinel holds its characters."""
    return [
        EncodedDocument(
            document.name,
            document.repository,
            document.language,
            encode_text(tokenizer, document.text),
            len(document.text.encode()),
        )
        for document in documents
    ]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a document, so that its first token is predicted too: the begin, or else the end, of text."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise TokenizerError("the tokenizer has neither a begin nor an end of text; set its eos_token")


def window_length(model: PreTrainedModel, asked: int | None = None) -> int:
    """Tokens in a window: as asked, or as many as the model has positions, up to 2048."""
    positions = getattr(model.config, "max_position_embeddings", None) or LONGEST_WINDOW
    if asked is not None and not 2 <= asked <= positions:
        raise ConfigError(f"window={asked} should be at least 2 and at most the model's {positions} positions")
    return asked or min(positions, LONGEST_WINDOW)


def window_batches(
    documents: Sequence[EncodedDocument], start_id: int, *, window: int, batch_tokens: int
) -> Iterator[WindowBatch]:
    """All windows of the documents, the longest first, padded to `batch_tokens` tokens a batch at most.

    A document that fits a window is one. In a longer one each window advances by half its length, so every token has
    at least the window's other half before it, or all of its document. A window above `batch_tokens` goes alone.
    """
    windows = [
        (end - start, number, start, new)
        for number, document in enumerate(documents)
        for start, new, end in _cut(len(document.ids) + 1, window)
    ]
    windows.sort(key=lambda one: (-one[0], *one[1:]))
    while windows:
        longest = windows[0][0]
        count = max(1, batch_tokens // longest)
        batch, windows = windows[:count], windows[count:]
        input_ids = torch.full((len(batch), longest), start_id)
        counted = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, (length, number, start, new) in enumerate(batch):
            ids = documents[number].ids
            seen = [start_id, *ids[: length - 1]] if start == 0 else ids[start - 1 : start - 1 + length]
            input_ids[row, :length] = torch.tensor(seen)
            counted[row, new - start : length] = True
        yield WindowBatch(input_ids, counted, [one[1] for one in batch], [one[2] for one in batch])


def count_windows(documents: Sequence[EncodedDocument], window: int) -> int:
    """How many windows `window_batches` gives."""
    return sum(1 for document in documents for _ in _cut(len(document.ids) + 1, window))


def _cut(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(start, first token that counts, end) of the windows over `length` tokens, the first of which never counts."""
    start, new = 0, 1
    while new < length:
        end = min(start + window, length)
        yield start, new, end
        new = end
        start = end - window // 2
