"""Datasets of the Hugging Face Hub, streamed through `datasets`: one unit a shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moe_codegen.data.batch import Batch
from moe_codegen.data.conform import conform
from moe_codegen.data.schema import Layout, detect_layout
from moe_codegen.data.settings import SourceSettings
from moe_codegen.errors import GatedDatasetError, SourceError

_ROWS = 256


@dataclass(frozen=True)
class HubUnit:
    """One shard of one split."""

    dataset: str
    settings: SourceSettings
    shard: int
    shards: int
    layout: Layout
    nbytes: int = 0

    @property
    def name(self) -> str:
        """The dataset and the shard's number."""
        return f"{self.dataset}#{self.shard}"

    def batches(self) -> Iterator[Batch]:
        """The rows, as they arrive."""
        stream = load_stream(self.dataset, self.settings).shard(num_shards=self.shards, index=self.shard)
        row = 0
        for table in stream.with_format("arrow").iter(batch_size=_ROWS):
            for batch in table.select(self.layout.projection(table.column_names)).combine_chunks().to_batches():
                yield Batch(conform(batch, self.layout, self.name), self.name, row)
                row += batch.num_rows


def hub_units(dataset: str, settings: SourceSettings, layout: Layout | None) -> Iterator[HubUnit]:
    """A unit for each shard of the split that `settings` names."""
    stream = load_stream(dataset, settings)
    columns = stream.column_names or list(next(iter(stream)))
    found = layout or detect_layout(columns, dataset)
    shards = max(stream.num_shards, 1)
    for shard in range(shards):
        yield HubUnit(dataset, settings, shard, shards, found)


def load_stream(dataset: str, settings: SourceSettings) -> Any:
    """The streaming dataset. Raises `GatedDatasetError`, with what to do, where the Hub asks for a sign-in."""
    import datasets

    try:
        return datasets.load_dataset(
            dataset,
            settings.config or None,
            data_dir=settings.data_dir or None,
            split=settings.split,
            revision=settings.revision or None,
            streaming=True,
        )
    except Exception as error:
        if _is_gated(error):
            raise GatedDatasetError(
                f"{dataset} is gated: open its page on the Hub, accept its terms with your account, then sign in here "
                "with `hf auth login` or set HF_TOKEN to a token that may read gated datasets"
            ) from error
        raise SourceError(f"{dataset} cannot be read from the Hub: {type(error).__name__}: {error}") from error


def _is_gated(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, is the Hub refusing a user."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if "Gated" in type(error).__name__ or "gated" in str(error) or status in (401, 403):
            return True
        error = error.__cause__ or error.__context__
    return False
