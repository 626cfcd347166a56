import json

import pyarrow as pa
import pytest

from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.rows.schema import LAYOUTS, SCHEMA
from moe_codegen.errors import ColumnError
from moe_codegen.languages import canonical_language, language_of_path
from tests.data.inputs import code, read, row, write


def the_stack_row(seed, **values):
    made = {"hexsha": f"{seed:040x}", "size": 1, "ext": "py", "lang": "Python", "content": code(seed)}
    for kind in ("stars", "issues", "forks"):
        made |= {f"max_{kind}_repo_{part}": f"{kind}/{part}{seed}.py" for part in ("path", "name", "head_hexsha")}
        made |= {f"max_{kind}_repo_licenses": ["MIT"], f"max_{kind}_count": seed}
        made |= {f"max_{kind}_repo_{kind}_event_{end}_datetime": "2020-01-01T00:00:00.000Z" for end in ("min", "max")}
    return made | {"avg_line_length": 1.0, "max_line_length": 1, "alphanum_fraction": 0.5} | values


def test_the_stack_with_all_its_columns(tmp_path):
    rows = [the_stack_row(1), the_stack_row(2, max_stars_count=None, max_forks_repo_licenses=["Apache-2.0"])]
    clean(open_source(write(tmp_path / "in", rows)), tmp_path / "out")
    one, two = read(tmp_path / "out")
    assert (one["hexsha"], one["repo"], one["path"]) == (f"{1:040x}", "stars/name1.py", "stars/path1.py")
    assert (one["language"], one["stars"], two["stars"]) == ("python", 1, 0)
    assert two["licenses"] == ["MIT", "Apache-2.0"]
    carried = LAYOUTS["the-stack"].carried
    assert {name: one[name] for name in carried} == {name: rows[0][name] for name in carried}
    again = open_source(tmp_path / "out")
    assert again.schema.names == [*SCHEMA.names, *carried]


def test_a_file_is_kept_if_any_of_its_repositories_is_permissive(tmp_path):
    rows = [
        the_stack_row(1, max_stars_repo_licenses=["GPL-3.0"]),
        the_stack_row(2, max_stars_repo_licenses=["GPL-3.0"]),
    ]
    rows[1] |= {"max_issues_repo_licenses": None, "max_forks_repo_licenses": ["LGPL-2.1"]}
    manifest = clean(open_source(write(tmp_path / "in", rows)), tmp_path / "out")
    assert manifest["tally"]["kept"]["python"][0] == 1


def test_licenses_as_bigquery_exports_them(tmp_path):
    exported = [{"list": [{"item": "MIT"}, {"item": "ISC"}]}, {"list": []}, None]
    rows = [row(seed, licenses=value) for seed, value in enumerate(exported)]
    clean(open_source(write(tmp_path / "in", rows)), tmp_path / "out")
    assert [one["licenses"] for one in read(tmp_path / "out")] == [["MIT", "ISC"]]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"repository_name": "a/b", "path": "x.py", "lang": "Python", "licenses": ["MIT"]}, "a/b"),
        ({"max_stars_repo_name": "a/b", "max_stars_repo_path": "x.py", "id": 7}, "a/b"),
        ({"repo": "a/b", "path": "x.py"}, "a/b"),
        ({"repo_name": "a/b", "path": "x.py", "copies": "1", "size": "9", "license": "mit"}, "a/b"),
        ({"repo_name": "a/b", "path": "/x.py", "blob_id": "7", "detected_licenses": ["MIT"]}, "a/b"),
    ],
)
def test_layouts_are_told_from_the_columns(tmp_path, columns, expected):
    source = open_source(write(tmp_path / "in", [columns | {"content": code(1)}]))
    (batch,) = source.units[0].batches()
    assert batch.rows["repo"].to_pylist() == [expected]
    assert batch.rows["language"].to_pylist() == ["python"]
    assert source.has_licenses == any("licens" in name for name in columns)


def test_any_dataset_by_a_column_mapping(tmp_path):
    write(tmp_path / "in", [{"body": code(1), "project": "p", "a": ["MIT"], "b": ["ISC"], "path": "p/q.c"}])
    settings = SourceSettings(columns=("content=body", "repo=project", "licenses=a+b"), language="python")
    (batch,) = open_source(tmp_path / "in", settings).units[0].batches()
    assert batch.rows["licenses"].to_pylist() == [["MIT", "ISC"]]
    assert (batch.rows["repo"].to_pylist(), batch.rows["language"].to_pylist()) == (["p"], ["python"])
    assert batch.rows["path"].to_pylist() == ["p/q.c"]


@pytest.mark.parametrize("columns", [("content",), ("text=body",), ("content=body", "repo=project"), ("repo=body",)])
def test_a_wrong_mapping_is_refused(tmp_path, columns):
    write(tmp_path / "in", [{"body": "x"}])
    with pytest.raises(ColumnError):
        open_source(tmp_path / "in", SourceSettings(columns=columns))


def test_the_language_of_a_file_that_names_none(tmp_path):
    write(tmp_path / "in" / "data" / "cpp", [{"path": "a/b.h", "content": "int a;\n"}])
    (batch,) = open_source(tmp_path / "in").units[0].batches()
    assert batch.rows["language"].to_pylist() == ["cpp"]
    assert language_of_path("x/Dockerfile") == "dockerfile"
    assert canonical_language("C++") == "cpp"


def test_shards_of_different_columns_are_refused(tmp_path):
    write(tmp_path / "in", [the_stack_row(1)], "a.parquet")
    write(tmp_path / "in", [row(1)], "b.parquet")
    with pytest.raises(ColumnError, match="of different columns"):
        open_source(tmp_path / "in")


def test_ids_without_text_are_told_from_a_missing_column(tmp_path):
    write(tmp_path / "in", [{"blob_id": "a", "path": "/x.py", "detected_licenses": ["MIT"]}])
    with pytest.raises(ColumnError, match="fetch the contents by `blob_id`"):
        open_source(tmp_path / "in")


@pytest.mark.parametrize(
    ("columns", "types"),
    [
        ({"content": code(1)}, {"content": pa.string_view()}),
        ({"content": code(1).encode()}, {"content": pa.binary_view()}),
        ({"content": code(1)}, {"content": pa.dictionary(pa.int32(), pa.string())}),
        ({"content": code(1), "licenses": ["MIT"]}, {"licenses": pa.list_(pa.dictionary(pa.int32(), pa.string()))}),
        ({"content": code(1), "size": "100", "alphanum_fraction": "?"}, {}),
    ],
)
def test_columns_in_any_encoding(tmp_path, columns, types):
    clean(open_source(write(tmp_path / "in", [columns | {"path": "a.py"}], **types)), tmp_path / "out")
    (one,) = read(tmp_path / "out")
    assert (one["content"], one["size"], one["licenses"]) == (code(1), len(code(1)), columns.get("licenses"))


@pytest.mark.parametrize("licensed_first", [True, False])
def test_rows_may_leave_out_what_others_have(tmp_path, licensed_first):
    unknown = {name: value for name, value in row(1).items() if name != "licenses"}
    rows = [row(2), unknown] if licensed_first else [unknown, row(2)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = clean(open_source(tmp_path / "in"), tmp_path / "out")
    assert {reason: some["python"][0] for reason, some in manifest["tally"].items()} == {
        "kept": 1,
        "license_unknown": 1,
    }


def test_a_licence_that_is_known_counts_wherever_it_first_appears(tmp_path):
    """In one file of several, or in later rows of a file whose rows have keys of their own."""
    unknown = {name: value for name, value in row(1).items() if name not in ("licenses", "repo")}
    gpl = row(2, licenses=["GPL-3.0"])
    write(tmp_path / "in", [unknown], "a.parquet")
    write(tmp_path / "in", [gpl], "b.parquet")
    (tmp_path / "in" / "c.jsonl").write_text(json.dumps(unknown) + "\n" + json.dumps(gpl))
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "c.jsonl").write_text("\n".join(map(json.dumps, [unknown] * 1000 + [gpl])))
    manifest = clean(open_source(tmp_path / "in"), tmp_path / "out")
    assert {reason: some["python"][0] for reason, some in manifest["tally"].items()} == {
        "license_unknown": 2,
        "license_not_permissive": 2,
    }
    with pytest.warns(UserWarning, match="licence filter is off"):
        manifest = clean(open_source(tmp_path / "late"), tmp_path / "out-late")
    assert manifest["tally"]["license_not_permissive"] == {"python": [1, len(gpl["content"])]}
