"""Every bad input is an error that says what to do, or a counted drop with a line in the log of dropped rows."""

import codecs
import json

import pyarrow as pa
import pytest

from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ColumnError, SourceError
from tests.data.inputs import code, read, row, write


def run(folder, out, **source_settings):
    manifest = clean(open_source(folder, SourceSettings(**source_settings)), out)
    logged = [
        json.loads(line) for path in sorted(out.glob("dropped/*.jsonl")) for line in path.read_text().splitlines()
    ]
    counted = {reason: sum(files for files, _ in some.values()) for reason, some in manifest["tally"].items()}
    assert len(logged) == sum(count for reason, count in counted.items() if reason != "kept")
    return counted, logged


BAD_CONTENT = {
    "null_content": None,
    "empty": b"",
    "invalid_utf8": b"x = '\xff\xfe'\n",
    "nul": b"x = 1\x00\n# no\n",
    "too_large": b"x = 1  # y\n" * 100_000,
}


@pytest.mark.parametrize("reason", BAD_CONTENT)
def test_a_bad_row_is_dropped_alone(tmp_path, reason):
    rows = [row(seed, content=code(seed).encode()) for seed in range(12)]
    rows[4]["content"] = BAD_CONTENT[reason]
    counted, logged = run(write(tmp_path / "in", rows, content=pa.binary()), tmp_path / "out")
    assert counted == {"kept": 11, reason: 1}
    assert (logged[0]["row"], logged[0]["path"], logged[0]["reason"]) == (4, "src/file4.py", reason)
    assert [one["path"] for one in read(tmp_path / "out")] == [one["path"] for i, one in enumerate(rows) if i != 4]


def test_invalid_utf8_in_a_string_column(tmp_path):
    """Parquet does not check what it calls a string."""
    good = [code(seed).encode() for seed in range(3)]
    column = pa.array([good[0], b"\xc3\x28", good[2]], pa.binary()).view(pa.string())
    (tmp_path / "in").mkdir()
    pa.parquet.write_table(pa.table({"content": column}), tmp_path / "in" / "a.parquet")
    counted, _ = run(tmp_path / "in", tmp_path / "out", language="python")
    assert counted == {"kept": 2, "invalid_utf8": 1}


def test_a_row_keeps_its_number_when_rows_before_it_are_dropped(tmp_path):
    rows = [
        row(0, content=None),
        row(1),
        row(2, licenses=["GPL-3.0"]),
        row(3, content=""),
        row(4, content="x = 1\n" * 9),
    ]
    _, logged = run(write(tmp_path / "in", rows), tmp_path / "out")
    assert {one["row"]: one["reason"] for one in logged} == {
        0: "null_content",
        2: "license_not_permissive",
        3: "empty",
        4: "comment_fraction",
    }


def test_null_counts_and_null_licenses(tmp_path):
    rows = [row(0, stars=None), row(1, licenses=None), row(2, licenses=["GPL-3.0"]), row(3, licenses=[])]
    counted, _ = run(write(tmp_path / "in", rows), tmp_path / "out")
    assert counted == {"kept": 1, "license_unknown": 2, "license_not_permissive": 1}
    assert read(tmp_path / "out")[0]["stars"] == 0


def test_a_count_that_is_not_a_number_is_none(tmp_path):
    """As pandas stores an integer that is missing."""
    counted, _ = run(write(tmp_path / "in", [row(0, stars=float("nan")), row(1, stars=3.0)]), tmp_path / "out")
    assert counted == {"kept": 2}
    assert [one["stars"] for one in read(tmp_path / "out")] == [0, 3]


def test_a_null_typed_column_is_a_column_of_nulls(tmp_path):
    rows = [row(seed, stars=None, repo=None, licenses=None) for seed in range(3)]
    folder = write(tmp_path / "in", rows, stars=pa.null(), repo=pa.null(), licenses=pa.null())
    counted, _ = run(folder, tmp_path / "out")
    assert counted == {"license_unknown": 3}


def test_null_typed_content_is_dropped_row_by_row(tmp_path):
    counted, _ = run(write(tmp_path / "in", [row(0, content=None), row(1, content=None)]), tmp_path / "out")
    assert counted == {"null_content": 2}


def test_missing_content_names_column_file_and_what_is_there(tmp_path):
    write(tmp_path / "in", [{"path": "a.py", "text": "x"}])
    with pytest.raises(ColumnError, match=r"`content`.*data\.parquet.*path, text.*--columns content="):
        open_source(tmp_path / "in")
    with pytest.raises(ColumnError, match=r"missing column `code` .*data\.parquet; found path, text\."):
        open_source(tmp_path / "in", SourceSettings(columns=("content=code",)))


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("content", 3, "string"),
        ("stars", "many", "a number"),
        ("licenses", 7, "list of strings"),
        ("path", 1.5, "string"),
    ],
)
def test_a_wrong_type_names_column_expected_found_and_file(tmp_path, column, values, expected):
    write(tmp_path / "in", [row(0, **{column: values})])
    with pytest.raises(ColumnError, match=rf"`{column}` should be .*{expected}.*found .*data\.parquet"):
        clean(open_source(tmp_path / "in"), tmp_path / "out")


def test_missing_optional_columns_are_recomputed_and_the_license_filter_warns(tmp_path):
    folder = write(tmp_path / "in", [{"path": f"{seed}.py", "content": code(seed)} for seed in range(3)])
    with pytest.warns(UserWarning, match="licence filter is off"):
        clean(open_source(folder), tmp_path / "out")
    one = read(tmp_path / "out")[0]
    text = one["content"]
    assert one["size"] == len(text)
    assert one["max_line_length"] == max(map(len, text.split("\n")))
    assert one["language"] == "python"
    assert one["alphanum_fraction"] == pytest.approx(sum(map(str.isalnum, text)) / len(text))
    assert len(one["hexsha"]) == 32


def test_jsonl_drops_single_lines(tmp_path):
    (tmp_path / "in").mkdir()
    good = [json.dumps(row(seed)).encode() for seed in range(3)]
    surrogate = json.dumps(row(7)).encode().replace(b"# ", b"# \\ud800", 1)
    raw_surrogate = json.dumps(row(8)).encode().replace(b"# ", b"# \xed\xa0\x80", 1)
    lines = [good[0], b'{"content": "cut off', good[1], surrogate, raw_surrogate, b"[1]", b"", good[2]]
    (tmp_path / "in" / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b"\n".join(lines))
    counted, logged = run(tmp_path / "in", tmp_path / "out")
    assert counted == {"kept": 3, "malformed_json": 2, "lone_surrogate": 1, "invalid_utf8": 1}
    assert [one["row"] for one in logged] == [1, 3, 4, 5]


def test_jsonl_ranges_lose_and_repeat_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    text = "\n".join(json.dumps(row(seed)) for seed in range(40))
    (tmp_path / "in" / "a.jsonl").write_text(text)
    for unit_bytes in (1, 700, len(text) // 3, len(text)):
        source = open_source(tmp_path / "in", unit_bytes=unit_bytes)
        paths = [path for unit in source.units for batch in unit.batches() for path in batch.rows["path"].to_pylist()]
        assert paths == [f"src/file{seed}.py" for seed in range(40)]


def test_mixed_types_in_jsonl_are_one_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps(row(0)) + "\n" + json.dumps(row(1, content=5)))
    with pytest.raises(ColumnError, match=r"`content` holds values of more than one type in a\.jsonl"):
        clean(open_source(tmp_path / "in"), tmp_path / "out")


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path / "in", [row(seed) for seed in range(50)])
    path = tmp_path / "in" / "data.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"data\.parquet cannot be read as Parquet"):
        open_source(tmp_path / "in")
    path.write_bytes(whole[:200] + b"\x00" * 2000 + whole[2200:])
    with pytest.raises(SourceError, match=r"data\.parquet is damaged"):
        clean(open_source(tmp_path / "in"), tmp_path / "out")


def test_nothing_to_read(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        open_source(tmp_path / "missing")
    with pytest.raises(SourceError, match=r"holds no \.parquet"):
        open_source(tmp_path)
