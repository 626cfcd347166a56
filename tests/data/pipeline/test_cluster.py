from concurrent.futures import ThreadPoolExecutor

import pytest

from moe_codegen.data.deduplication.dedup import dedup
from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.filtering.filters import CleanSettings
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import WorkerError
from tests.data.inputs import code, edited, row, tree, write

datatrove = pytest.importorskip("datatrove", reason="needs the extra `cluster`")

ROWS = [row(seed, content=edited(code(seed % 40, 50), 0.03, seed)) for seed in range(120)]
ROWS[3] |= {"content": None}
ROWS[4] |= {"content": "# This file is auto-generated\n" + code(1)}
ROWS[5] |= {"licenses": ["GPL-3.0"]}


@pytest.fixture
def mapper(tmp_path):
    from datatrove.executor import LocalPipelineExecutor

    from moe_codegen.data.pipeline.cluster import DatatroveMapper

    def make_executor(pipeline, tasks):
        return LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(tmp_path / "logs"))

    return DatatroveMapper(make_executor, tasks=3)


def test_datatrove_gives_the_same_bytes_as_one_machine(tmp_path, mapper):
    from moe_codegen.data.pipeline.cluster import clean_on, dedup_on

    source = open_source(write(tmp_path / "in", ROWS), unit_bytes=8000)
    assert len(source.units) > 5
    clean(source, tmp_path / "here")
    clean_on(mapper, source, tmp_path / "there")
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    cleaned = open_source(tmp_path / "here", unit_bytes=8000)
    manifest = dedup(cleaned, tmp_path / "here-dedup")
    dedup_on(mapper, cleaned, tmp_path / "there-dedup")
    assert tree(tmp_path / "here-dedup") == tree(tmp_path / "there-dedup")
    assert 30 < manifest["rows"] < 100


def test_a_unit_that_fails_in_a_submitted_task_is_not_waited_for(tmp_path):
    from moe_codegen.data.pipeline.cluster import DatatroveMapper, clean_on

    class Submitting:
        def __init__(self, pipeline, tasks):
            self.step, self.tasks = pipeline[0], tasks

        def run(self):
            for rank in range(self.tasks):
                pool.submit(lambda rank=rank: list(self.step.run(None, rank, self.tasks)))

    write(tmp_path / "in", ROWS[:3], "a.parquet")
    write(tmp_path / "in", [row(9, stars="many")], "b.parquet")
    mapper = DatatroveMapper(Submitting, 2, poll_seconds=0.01)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):  # what has failed is tried again
            with pytest.raises(WorkerError, match=r"1 of \d units failed, the first with ColumnError: column `stars`"):
                clean_on(mapper, open_source(tmp_path / "in"), tmp_path / "out")


def test_what_a_killed_task_left_undone_is_done_by_the_next_run(tmp_path, mapper):
    from moe_codegen.data.pipeline.cluster import DatatroveMapper, clean_on

    class Dying:
        """An executor whose second task dies before its second unit, without a word."""

        def __init__(self, pipeline, tasks):
            self.step, self.tasks = pipeline[0], tasks

        def run(self):
            for rank in range(self.tasks):
                jobs = self.step.jobs[rank :: self.tasks]
                for job in jobs[: 1 if rank == 1 else None]:
                    self.step.function(*job)

    source = open_source(write(tmp_path / "in", ROWS), unit_bytes=8000)
    left = len(range(1, len(source.units), 2)) - 1
    clean(source, tmp_path / "here")
    with pytest.raises(WorkerError, match=f"{left} of {len(source.units)} units were not done; .*run again"):
        clean_on(DatatroveMapper(Dying, tasks=2), source, tmp_path / "there")
    assert not (tmp_path / "there" / "manifest.json").exists()
    clean_on(mapper, source, tmp_path / "there")
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def test_the_filter_in_a_pipeline_of_documents(tmp_path):
    from datatrove.data import Document

    from moe_codegen.data.pipeline.cluster import CodeFilter

    documents = [
        Document(text=one["content"] or "", id=str(number), metadata={k: v for k, v in one.items() if k != "content"})
        for number, one in enumerate(ROWS)
    ]
    step = CodeFilter(CleanSettings(), batch_size=50)
    kept = [int(document.id) for document in step.run(documents)]
    clean(open_source(write(tmp_path / "in", ROWS)), tmp_path / "out")
    from tests.data.inputs import read

    wanted = {one["path"] for one in read(tmp_path / "out")}
    assert {ROWS[number]["path"] for number in kept} == wanted
    assert step.filter(documents[4]) == (False, "generated")
    assert step.filter(documents[0]) is True
