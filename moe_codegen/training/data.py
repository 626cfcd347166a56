"""The data of a run: packed sequences to train on, documents to measure the loss on; checked before anything starts."""

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import xxhash

from moe_codegen.data import collate, load_packed, packed_languages, read_manifest
from moe_codegen.data.packing.tokenizer import vocabulary_hash
from moe_codegen.errors import SourceError, TokenizerError
from moe_codegen.metrics import EncodedDocument, encode_documents
from moe_codegen.metrics.documents import stream_documents


class PackedSequences(torch.utils.data.Dataset):
    """The rows of some folders of `data pack`, one folder after the other.

    Attributes:
        languages: every name that `pack` knew of; the rows' `languages` are places in it.
        tokens_by_language: the tokens of each language that has any.
        sequence_length: tokens of every row.

    Raises:
        SourceError: a folder that `pack` did not make, one without sequences, or folders of two lengths.
        TokenizerError: a folder packed with another tokenizer than `tokenizer`.
    """

    def __init__(self, folders: Sequence[str], tokenizer: Any) -> None:
        self.languages = tuple(dict.fromkeys(name for folder in folders for name in packed_languages(folder)))
        manifests = {folder: read_manifest(folder) or {} for folder in folders}
        mine = vocabulary_hash(tokenizer.get_vocab())
        for folder, manifest in manifests.items():
            if manifest["sequences"] == 0:
                raise SourceError(
                    f"{folder} is packed from no documents ({', '.join(packed_languages(folder))}); "
                    "leave it out, or pack data that has some"
                )
            if manifest.get("vocabulary") != mine:
                raise TokenizerError(
                    f"{folder} was packed with the tokenizer {manifest['settings']['tokenizer']}, which numbers tokens "
                    "otherwise than the model's; pack the data again with the tokenizer of the model's folder"
                )
        lengths = {folder: manifest["settings"]["sequence_length"] for folder, manifest in manifests.items()}
        if len(set(lengths.values())) > 1:
            raise SourceError(f"the folders hold sequences of different lengths, {lengths}; pack them alike")
        self.sequence_length: int = next(iter(lengths.values()))
        counts = (Counter[str](manifest["tokens_by_language"]) for manifest in manifests.values())
        self.tokens_by_language = dict(sum(counts, Counter[str]()))
        self._parts = [load_packed(folder, streaming=False) for folder in folders]
        self._places = [[self.languages.index(name) for name in packed_languages(folder)] for folder in folders]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = self._parts[part][index - int(self._ends[part]) + len(self._parts[part])]
        return {**row, "languages": [self._places[part][language] for language in row["languages"]]}


def batch_of(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `PackedSequences` -> `input_ids`, `position_ids`, `labels`, `language_ids`, each (B, S) int64."""
    return collate(rows, with_languages=True)


def validation_documents(source: str, tokenizer: Any, tokens: int) -> list[EncodedDocument]:
    """Documents of each language, up to about `tokens` of them, always the same ones.

    Files are taken in the order of a hash of their text, so no repository comes first. Raises `SourceError` where
    there are none, `ConfigError` where some are for training.
    """
    found: dict[str, list[tuple[int, EncodedDocument]]] = {}
    for document in stream_documents(source):
        taken = found.setdefault(document.language, [])
        place = xxhash.xxh64_intdigest(document.text.encode())
        if _tokens(taken) < tokens or place < taken[-1][0]:
            (encoded,) = encode_documents(tokenizer, [document])
            insort(taken, (place, encoded), key=itemgetter(0))
            while _tokens(taken[:-1]) >= tokens:
                taken.pop()
    if not found:
        raise SourceError(f"{source} holds no documents to measure the loss on")
    return [document for language in sorted(found) for _, document in found[language]]


def _tokens(taken: Sequence[tuple[int, EncodedDocument]]) -> int:
    return sum(len(document.ids) for _, document in taken)
