"""Which experts of a mixture take which language and which kind of token, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_codegen.checkpoint import encode_with_offsets
from moe_codegen.evaluation.held_out.token_kinds import KINDS, kinds_of_characters, kinds_of_tokens
from moe_codegen.metrics import Document, EncodedDocument, ExpertLoad, LoadCounts, load_summary
from moe_codegen.metrics.loss import BATCH_TOKENS, evaluating, told_languages
from moe_codegen.metrics.windows import window_batches, window_length
from moe_codegen.moe import RoutingRecorder


@dataclass(frozen=True)
class KindedDocument(EncodedDocument):
    """A document's tokens, and of each token its kind's place in `KINDS`."""

    kinds: Sequence[int]


def encode_kinds(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[KindedDocument]:
    """The documents' tokens with their kinds. Raises `ConfigError` for a language whose kinds nothing tells apart."""
    kinded = []
    for document in documents:
        tokens = encode_with_offsets(tokenizer, document.text)
        kinds = kinds_of_tokens(kinds_of_characters(document.text, document.language), tokens.offsets)
        size = len(document.text.encode())
        about = document.name, document.repository, document.language
        kinded.append(KindedDocument(*about, tokens.ids, size, kinds))
    return kinded


def expert_use(
    model: PreTrainedModel,
    documents: Sequence[KindedDocument],
    start_id: int,
    *,
    window: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> LoadCounts:
    """How often each expert took each language and kind; the groups are "language/kind", kinds within languages.

    Each token of each document is counted once, in the window in which the loss predicts it (see `window_batches`).
    The arguments are those of `document_losses`. Raises `ConfigError` for a dense model.
    """
    languages = sorted({document.language for document in documents})
    load = ExpertLoad.of_model(model, [f"{language}/{kind}" for language in languages for kind in KINDS])
    length = window_length(model, window)
    with evaluating(model), torch.no_grad(), RoutingRecorder(model) as recorder:
        for batch in window_batches(documents, start_id, window=length, batch_tokens=batch_tokens):
            group_BS = torch.zeros_like(batch.input_ids)
            for row, (number, place) in enumerate(zip(batch.documents, batch.places, strict=True)):
                first = languages.index(documents[number].language) * len(KINDS)
                kinds = [0, *documents[number].kinds][place : place + group_BS.shape[1]]  # before them, the start token
                group_BS[row, : len(kinds)] = first + torch.tensor(kinds)
            told = told_languages(model, [documents[number].language for number in batch.documents])
            model.base_model(input_ids=batch.input_ids.to(model.device), use_cache=False, **told)
            load.add(recorder.ids_LTK, batch.counted, group_BS)
            on_windows(len(batch.documents))
    return load.counts()


def expert_use_record(counts: LoadCounts) -> dict[str, Any]:
    """As JSON: the counts by language, kind, layer and expert, and what they say by language and by kind."""
    languages = tuple(dict.fromkeys(group.partition("/")[0] for group in counts.groups))
    by_language, by_kind = (_summed(counts, languages, axis) for axis in (1, 0))
    return {
        "languages": list(languages),
        "kinds": list(KINDS),
        "chosen": _unfolded(counts.chosen_GLE, languages).tolist(),
        "by_language": load_summary(by_language),
        "by_kind": load_summary(by_kind),
    }


def _unfolded(counts_GLE: np.ndarray, languages: Sequence[str]) -> np.ndarray:
    return counts_GLE.reshape(len(languages), len(KINDS), *counts_GLE.shape[1:])


def _summed(counts: LoadCounts, languages: tuple[str, ...], axis: int) -> LoadCounts:
    """The counts by language (axis 1 summed) or by kind (axis 0 summed), groups without a token left out."""
    names = languages if axis == 1 else KINDS
    chosen, first = (_unfolded(some, languages).sum(axis=axis) for some in (counts.chosen_GLE, counts.first_GLE))
    kept = np.flatnonzero(first[:, 0].sum(axis=-1))
    return LoadCounts(tuple(names[place] for place in kept), counts.layers, chosen[kept], first[kept])
