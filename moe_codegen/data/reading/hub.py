"""Datasets of the Hugging Face Hub, streamed through `datasets`: one unit a shard, all of one commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from moe_codegen.data.reading.files import digest
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.rows.batch import Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.schema import Layout, LayoutFinder
from moe_codegen.errors import GatedDatasetError, SourceError

_ROWS = 256


@dataclass(frozen=True)
class HubUnit:
    """One shard of one split; `settings.revision` is a commit, so that a resumed run reads what it read before."""

    dataset: str
    settings: SourceSettings
    shard: int
    shards: int
    layout: Layout
    nbytes: int = 0

    @property
    def name(self) -> str:
        """The dataset, its commit and the shard's number."""
        return f"{self.dataset}@{self.settings.revision[:12]}#{self.shard}"

    @property
    def identity(self) -> str:
        """A hash of what is read at which commit, and how."""
        return digest(self.settings, self.shard, self.shards, self.layout)

    @property
    def modified(self) -> tuple[int, ...]:
        """Nothing: a commit is never changed."""
        return ()

    def batches(self) -> Iterator[Batch]:
        """The rows, as they arrive. Raises `SourceError` where the connection breaks for good, or a file is damaged."""
        row = 0
        try:
            stream = load_stream(self.dataset, self.settings).shard(num_shards=self.shards, index=self.shard)
            for table in stream.with_format("arrow").iter(batch_size=_ROWS):
                for batch in table.select(self.layout.projection(table.column_names)).combine_chunks().to_batches():
                    yield Batch(conform(batch, self.layout, self.name), self.name, row)
                    row += batch.num_rows
        except SourceError:
            raise
        except Exception as error:
            raise _refused(f"{self.name} after row {row}", error) from error


def hub_units(dataset: str, settings: SourceSettings, find: LayoutFinder) -> Iterator[HubUnit]:
    """A unit for each shard of the split that `settings` names, at the commit that its revision is now."""
    pinned = replace(settings, revision=commit_of(dataset, settings.revision))
    stream = load_stream(dataset, pinned)
    with _telling(dataset):
        columns = stream.column_names or list(next(iter(stream), {}))
    layout = find(columns, dataset)
    shards = max(stream.num_shards, 1)
    for shard in range(shards):
        yield HubUnit(dataset, pinned, shard, shards, layout)


def load_stream(dataset: str, settings: SourceSettings) -> Any:
    """The streaming dataset. Raises `GatedDatasetError`, with what to do, where the Hub asks for a sign-in."""
    import datasets

    with _telling(dataset):
        return datasets.load_dataset(
            dataset,
            settings.config or None,
            data_dir=settings.data_dir or None,
            split=settings.split,
            revision=settings.revision or None,
            streaming=True,
        )


def load_rows(dataset: str, settings: SourceSettings) -> list[dict[str, Any]]:
    """All rows of a small dataset. Raises as `load_stream`, and `SourceError` where they cannot be read."""
    stream = load_stream(dataset, settings)
    with _telling(dataset):
        return [dict(row) for row in stream]


def commit_of(dataset: str, revision: str) -> str:
    """The commit of a dataset's branch or tag; of its main branch where none is named."""
    import huggingface_hub

    with _telling(dataset):
        return huggingface_hub.HfApi().dataset_info(dataset, revision=revision or None).sha or revision


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Any error in here as ours, of `what`."""
    try:
        yield
    except Exception as error:
        raise _refused(what, error) from error


def _refused(what: str, error: Exception) -> SourceError:
    """Our error for one of `datasets` or of the Hub's client, which says what to do."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    found = type(error)
    if isinstance(error, DatasetNotFoundError):  # `datasets` drops the Hub's own error on the way and leaves its text
        found = GatedRepoError if "gated dataset" in str(error) else RepositoryNotFoundError
    sign_in = "sign in here with `hf auth login` or set HF_TOKEN to a token that may read"
    for kind, advice in (
        (GatedRepoError, f"is gated: open its page on the Hub, accept its terms with your account, then {sign_in} it"),
        (
            RepositoryNotFoundError,
            f"is no file or folder here and no dataset of the Hub, or a private one: check its name, or {sign_in} it",
        ),
        (RevisionNotFoundError, "has no such revision; its page on the Hub lists them"),
    ):
        if issubclass(found, kind):
            return (GatedDatasetError if kind is GatedRepoError else SourceError)(f"{what} {advice}")
    return SourceError(f"{what} cannot be read from the Hub: {type(error).__name__}: {error}")
