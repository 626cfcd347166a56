"""Loss of a language model on documents: by document, by language with intervals, and between two models.

Loss is in nats per token, which compares models of one tokenizer. Bits per byte, `nats / (ln 2 * bytes)`, compares any.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_codegen.errors import ConfigError
from moe_codegen.metrics.intervals import Interval, ratio_interval
from moe_codegen.metrics.windows import EncodedDocument, window_batches, window_length

Unit = Literal["token", "byte"]
BATCH_TOKENS = 4096  # at a vocabulary of 50,000, 0.8 GB of logits in fp32
ALL = "all"


@dataclass(frozen=True)
class DocumentLosses:
    """What a model made of each document, all of one length.

    Attributes:
        names, repositories, languages: of the documents.
        nats: summed over a document's tokens, fp64.
        tokens, bytes: how many the document has.
    """

    names: tuple[str, ...]
    repositories: tuple[str, ...]
    languages: tuple[str, ...]
    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    @classmethod
    def of_documents(cls, documents: Sequence[EncodedDocument], nats: np.ndarray) -> "DocumentLosses":
        """`nats` beside what is known of the documents."""
        return cls(
            names=tuple(document.name for document in documents),
            repositories=tuple(document.repository for document in documents),
            languages=tuple(document.language for document in documents),
            nats=nats,
            tokens=np.array([len(document.ids) for document in documents]),
            bytes=np.array([document.num_bytes for document in documents]),
        )

    def size(self, unit: Unit) -> np.ndarray:
        """What a document's loss is divided by: its tokens, or its bytes times ln 2, which makes bits of nats."""
        return self.tokens.astype(np.float64) if unit == "token" else self.bytes * math.log(2)

    def of(self, language: str) -> np.ndarray:
        """Which documents are of `language`, as a mask; all of them for "all"."""
        languages = np.asarray(self.languages, dtype=str)
        return np.ones(len(languages), bool) if language == ALL else languages == language

    @property
    def groups(self) -> list[str]:
        """The languages in alphabetical order, then "all"."""
        return [*sorted(set(self.languages)), ALL]


def document_losses(
    model: PreTrainedModel,
    documents: Sequence[EncodedDocument],
    start_id: int,
    *,
    window: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> DocumentLosses:
    """The loss of each document, with nothing of another before it.

    Every token is predicted once: the first from `start_id`, those of a document longer than `window` tokens with at
    least half a window of text before them (see `window_batches`). No batch waits for the device.

    Args:
        model: any causal language model; run without dropout, in its own dtype, losses in fp32.
        documents: as `encode_documents` gives them.
        start_id: as `start_token` gives it.
        window: tokens the model sees at once; None for its positions, up to 2048.
        batch_tokens: tokens that go through the model together.
        on_windows: called after every batch with the number of its windows.

    Raises:
        ConfigError: no documents, an empty one, or a window the model has no positions for.
    """
    if not documents:
        raise ConfigError("there are no documents to measure the loss on")
    for document in documents:
        if not document.ids:
            raise ConfigError(f"{document.name} has no tokens; leave empty files out")
    length = window_length(model, window)
    nats, numbers = [], []
    with evaluating(model), torch.no_grad():
        for batch in window_batches(documents, start_id, window=length, batch_tokens=batch_tokens):
            input_ids = batch.input_ids.to(model.device, non_blocking=True)
            counted = batch.counted.to(model.device, non_blocking=True)
            told = told_languages(model, [documents[number].language for number in batch.documents])
            nats.append(_nats_of_windows(model, input_ids, counted, **told))
            numbers += batch.documents
            on_windows(len(batch.documents))
    nats_by_document = np.bincount(numbers, weights=torch.cat(nats).double().cpu().numpy(), minlength=len(documents))
    return DocumentLosses.of_documents(documents, nats_by_document)


def losses_by_language(losses: DocumentLosses, unit: Unit = "token") -> dict[str, Interval]:
    """Mean loss of each language and of "all", in nats per token or bits per byte, with its interval."""
    return _intervals(losses, losses.nats, unit)


def loss_differences(one: DocumentLosses, other: DocumentLosses, unit: Unit = "token") -> dict[str, Interval]:
    """By language and for "all", how much `one` loses more than `other` on the same documents, with its interval.

    Below zero, `one` is better. Both models meet the same easy and hard files, so the difference is known far better
    than either loss.

    Raises:
        ConfigError: not the same documents, or nats per token of different tokenizers.
    """
    if one.names != other.names or not np.array_equal(one.bytes, other.bytes):
        raise ConfigError("the two models were measured on different documents; measure both on the same")
    if unit == "token" and not np.array_equal(one.tokens, other.tokens):
        raise ConfigError("the two models cut the documents into different tokens; compare bits per byte")
    return _intervals(one, one.nats - other.nats, unit)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the model is in evaluation mode, and after which it is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def told_languages(model: PreTrainedModel, languages: Sequence[str]) -> dict[str, torch.Tensor]:
    """What a mixture that routes by language is told of rows in `languages`: `language_ids`, (B,); else nothing."""
    if getattr(model.config, "language_routing", "none") == "none":
        return {}
    return {"language_ids": torch.tensor(model.config.language_ids(languages), device=model.device)}


def _nats_of_windows(
    model: PreTrainedModel, input_ids: torch.Tensor, counted: torch.Tensor, **told: torch.Tensor
) -> torch.Tensor:
    """(B,) fp32, the summed loss of each window's counted tokens."""
    # Right padding lies after every token that counts, so causal attention needs no mask to leave it out.
    logits_BSV = model(input_ids=input_ids, use_cache=False, **told).logits
    targets_BS = torch.where(counted, input_ids, -100)
    # Row by row: fp32 logits of one window at a time.
    return torch.stack(
        [
            F.cross_entropy(logits_SV[:-1].float(), targets_S[1:], ignore_index=-100, reduction="sum")
            for logits_SV, targets_S in zip(logits_BSV, targets_BS, strict=True)
        ]
    )


def _intervals(losses: DocumentLosses, nats: np.ndarray, unit: Unit) -> dict[str, Interval]:
    size, repositories = losses.size(unit), np.asarray(losses.repositories, dtype=str)
    intervals = {}
    for group in losses.groups:
        mine = losses.of(group)
        intervals[group] = ratio_interval(nats[mine], size[mine], repositories[mine])
    return intervals
