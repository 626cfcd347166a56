import pytest

from moe_codegen.data.deduplication.dedup import dedup
from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.filtering.filters import CleanSettings
from moe_codegen.data.reading.sources import open_source
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
        return LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=1, logging_dir=str(tmp_path / "logs"), skip_completed=False
        )

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
