"""Beyond one machine: the same passes as steps of datatrove (extra `cluster`), on its local, Slurm or Ray executor.

`CodeFilter` is a filter for anybody's datatrove pipeline. `DatatroveMapper` hands whole verbs to an executor: their
units are its tasks, on a file system that all machines see, so that the output is the one of a single machine, byte for
byte.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from moe_codegen.data.deduplication.dedup import DedupSettings, dedup_body
from moe_codegen.data.filtering.clean import clean_body
from moe_codegen.data.filtering.filters import CleanSettings, judge
from moe_codegen.data.passes.progress import Progress
from moe_codegen.data.passes.stage import Record, record_path, run_stage
from moe_codegen.data.reading.sources import Source
from moe_codegen.data.rows.batch import Batch
from moe_codegen.data.rows.conform import conform
from moe_codegen.data.rows.schema import find_layout
from moe_codegen.errors import WorkerError

Jobs = Sequence[tuple[Any, ...]]


class CodeFilter(BaseFilter):
    """Our filters on datatrove documents: `text` is the content, our other columns are looked for in `metadata`."""

    name = "moe-codegen"

    def __init__(self, settings: CleanSettings | None = None, batch_size: int = 256, **options: Any) -> None:
        super().__init__(batch_size=batch_size, **options)
        self.settings = settings or CleanSettings()

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """True, or False with the reason."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """The same for many documents at once, which is many times faster."""
        rows = [{**doc.metadata, "content": doc.text.encode("utf-8", "surrogatepass")} for doc in batch]
        layout = find_layout(list(dict.fromkeys(name for row in rows for name in row)), "datatrove", "usual")
        columns = {name: [row.get(name) for row in rows] for some in layout.columns for name in layout.sources(some)}
        given = conform(pa.RecordBatch.from_pydict(columns), layout, "datatrove")
        verdict = judge(Batch(given, "datatrove", 0), self.settings, licensed=bool(layout.sources("licenses")))
        reasons = {one.record["row"]: one.reason for one in verdict.dropped}
        return [(False, reasons[row]) if row in reasons else True for row in range(len(batch))]


class UnitsStep(PipelineStep):
    """Does every `world_size`-th job from its rank on; passes documents through."""

    name = "moe-codegen units"
    type = "units"

    def __init__(self, function: Callable[..., None], jobs: Jobs) -> None:
        super().__init__()
        self.function, self.jobs = function, jobs

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Do this task's share."""
        for job in self.jobs[rank::world_size]:
            with self.track_time("unit"):
                try:
                    self.function(*job)
                except Exception as error:  # told to whoever waits for the unit's record
                    _failure(job).write_text(f"{type(error).__name__}: {error}")
                    raise
        yield from data or ()


class DatatroveMapper:
    """A `Mapper` that runs units as the tasks of a datatrove executor.

    `make_executor(pipeline, tasks)` makes one, such as
    `lambda pipeline, tasks: LocalPipelineExecutor(pipeline, tasks, workers=4, logging_dir=...)`.
    An executor that only submits (Slurm) is waited for by the units' records, `poll_seconds` between looks, until all
    are done or one has failed. A task that is killed leaves no word, and executors too may wait for it for good: then
    stop, and run again, which does the units that are left.
    """

    def __init__(
        self, make_executor: Callable[[list[PipelineStep], int], Any], tasks: int, poll_seconds: float | None = None
    ) -> None:
        self.make_executor, self.tasks, self.poll_seconds = make_executor, tasks, poll_seconds

    def __call__(self, function: Callable[..., None], jobs: Jobs, num_proc: int, progress: Progress | None) -> None:
        """Run the jobs; raises `WorkerError` where some have failed or are left undone."""
        if not jobs:
            return
        for job in jobs:
            _failure(job).unlink(missing_ok=True)
        executor = self.make_executor([UnitsStep(function, jobs)], min(self.tasks, len(jobs)))
        executor.skip_completed = False  # it knows tasks by number, and in each pass and run they do other units
        executor.run()
        while self.poll_seconds is not None and _undone(jobs) and not _failed(jobs):
            time.sleep(self.poll_seconds)
        if failed := _failed(jobs):
            said = failed[0].read_text()
            raise WorkerError(
                f"{len(failed)} of {len(jobs)} units failed, the first with {said}; mend that and run again"
            )
        if left := _undone(jobs):
            raise WorkerError(f"{len(left)} of {len(jobs)} units were not done; see the executor's logs, and run again")


def _undone(jobs: Jobs) -> list[int]:
    """Numbers of the jobs that left no record."""
    return [number for _, _, number, _, records, _ in jobs if not record_path(records, number).exists()]


def _failure(job: tuple[Any, ...]) -> Path:
    """Where a unit that has failed says with what."""
    _, _, number, _, records, _ = job
    return record_path(records, number).with_suffix(".failed")


def _failed(jobs: Jobs) -> list[Path]:
    return [path for path in map(_failure, jobs) if path.exists()]


def clean_on(mapper: DatatroveMapper, source: Source, out: str | Path, settings: CleanSettings | None = None) -> Record:
    """`clean` on a datatrove executor."""
    return run_stage("clean", source, out, settings or CleanSettings(), clean_body, mapper=mapper)


def dedup_on(mapper: DatatroveMapper, source: Source, out: str | Path, settings: DedupSettings | None = None) -> Record:
    """`dedup` on a datatrove executor; its middle pass runs where this is called."""
    return run_stage("dedup", source, out, settings or DedupSettings(), dedup_body, mapper=mapper)
