"""Every unit of these tests comes in several batches, as one of real size does."""

import pytest

from moe_codegen.data.reading import checkouts, jsonl, parquet


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    for reader in (checkouts, jsonl, parquet):
        monkeypatch.setattr(reader, "BATCH_BYTES", 4096)
