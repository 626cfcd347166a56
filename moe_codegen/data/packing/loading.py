"""Packed sequences as a model's input, with documents that do not see one another.

The mask is in the position ids: they restart at each document, and transformers' attention masks tell documents apart
by that, as long as there is no attention mask and no cache (`use_cache=False`: with a cache documents leak silently).
"""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moe_codegen.data.packing.pack import PACKED
from moe_codegen.data.passes.stage import read_manifest
from moe_codegen.errors import SourceError

IGNORED = -100  # labels that count for nothing


def load_packed(folder: str | Path, streaming: bool = True) -> Any:
    """The packed sequences of a folder as a `datasets` dataset, in their order, which is shuffled already.

    Streaming, its `state_dict()` and `load_state_dict()` resume a training run at the same sequence.
    Raises `SourceError` for a folder that `pack` did not make.
    """
    import datasets

    packed_languages(folder)
    features = datasets.Features.from_arrow_schema(PACKED)
    files = sorted(glob.escape(str(path)) for path in Path(folder).glob("*.parquet"))  # `datasets` takes patterns
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming, features=features)


def packed_languages(folder: str | Path) -> tuple[str, ...]:
    """The names that the `languages` of a folder's rows number, and `collate`'s `language_ids` after them."""
    manifest = read_manifest(folder)
    if manifest is None or "languages" not in manifest:
        raise SourceError(f"{folder} holds no packed sequences; make them with `moe-codegen data pack`")
    return tuple(manifest["languages"])


def collate(rows: Sequence[dict[str, Any]], with_languages: bool = False) -> dict[str, torch.Tensor]:
    """Rows of `load_packed` -> `input_ids`, `position_ids` and `labels`, each (B, S) int64.

    A document's first token has no label, for it would be predicted from another document; nor has padding, which is a
    document of its own. `with_languages` adds `language_ids`: each token's place in `packed_languages`, and `IGNORED`
    for padding. No model takes them as they are; who asks for them takes them out again.
    """
    input_ids = torch.tensor([row["input_ids"] for row in rows])
    batch = {"input_ids": input_ids, "position_ids": torch.empty_like(input_ids), "labels": input_ids.clone()}
    if with_languages:
        batch["language_ids"] = torch.empty_like(input_ids)
    for number, row in enumerate(rows):
        padding = input_ids.shape[1] - sum(row["lengths"])
        lengths = torch.tensor([*row["lengths"], padding])
        starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        batch["position_ids"][number] = torch.arange(len(starts)) - starts
        batch["labels"][number, len(starts) - padding :] = IGNORED
        if with_languages:
            languages = torch.tensor([*row["languages"], IGNORED])
            batch["language_ids"][number] = torch.repeat_interleave(languages, lengths)
    batch["labels"][batch["position_ids"] == 0] = IGNORED
    return batch
