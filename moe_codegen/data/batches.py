"""Packed sequences as a model's input, with documents that do not see one another.

The mask is in the position ids: they restart at each document, and transformers' attention masks tell documents apart
by that, as long as there is no attention mask and no cache (`use_cache=False`: with a cache documents leak silently).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moe_codegen.data.packing import PACKED

IGNORED = -100  # labels that count for nothing


def load_packed(folder: str | Path, streaming: bool = True) -> Any:
    """The packed sequences of a folder as a `datasets` dataset, in their order, which is shuffled already.

    Streaming, its `state_dict()` and `load_state_dict()` resume a training run at the same sequence.
    """
    import datasets

    features = datasets.Features.from_arrow_schema(PACKED)
    files = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming, features=features)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `load_packed` -> `input_ids`, `position_ids` and `labels`, each (B, S) int64.

    A document's first token has no label, for it would be predicted from another document; nor has padding, which is a
    document of its own.
    """
    input_ids = torch.tensor([row["input_ids"] for row in rows])
    position_ids, labels = torch.empty_like(input_ids), input_ids.clone()
    for number, row in enumerate(rows):
        length = input_ids.shape[1]
        padding = length - sum(row["lengths"])
        positions = [torch.arange(size) for size in [*row["lengths"], padding]]
        position_ids[number] = torch.cat(positions)
        labels[number, length - padding :] = IGNORED
    labels[position_ids == 0] = IGNORED
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
