"""What of a file or folder is read, and that nothing in it is passed over without a word."""

import gzip
import json
import os

import pyarrow as pa
import pytest

from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.filtering.filters import CleanSettings
from moe_codegen.data.reading.files import walk
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ConfigError, SourceError
from tests.data.inputs import code, row, write


def paths_of(folder, **settings):
    """The paths of all rows."""
    units = open_source(folder, SourceSettings(**settings)).units
    return [path for unit in units for batch in unit.batches() for path in batch.rows["path"].to_pylist()]


def compressed(text):
    """`text` as one zstd frame."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text)
    return sink.getvalue().to_pybytes()


def write_lines(path, *seeds):
    """Rows in a file of JSON Lines, packed as its name says."""
    text = "\n".join(json.dumps(row(seed)) for seed in seeds).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {".gz": gzip.compress, ".zst": compressed}.get(path.suffix, bytes)
    path.write_bytes(packed(text))


def test_tables_of_every_format_and_depth_are_read_together(tmp_path):
    folder = write(tmp_path / "in", [row(1)], "a.parquet")
    names = ("b.jsonl", "deep/c.jsonl.gz", "deep/d.json.zst", "deep/er/e.ndjson", "elsewhere/f.jsonl")
    for seed, name in enumerate(names, 2):
        write_lines(folder / name, seed)
    (folder / "elsewhere").rename(tmp_path / "elsewhere")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "deep" / "round").symlink_to(folder)
    for name in ("README.md", ".git/config", "dropped/part-00000.jsonl", "dataset_infos.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("# no table\n")
    (folder / "empty.jsonl").write_text("")
    assert sorted(paths_of(folder)) == [f"src/file{seed}.py" for seed in range(1, 7)]


def test_json_files_are_json_lines_where_there_is_nothing_else(tmp_path):
    write_lines(tmp_path / "in" / "data" / "python" / "data.json", 1, 2)
    for place in ("in", "in/data/python/data.json"):
        assert paths_of(tmp_path / place) == ["src/file1.py", "src/file2.py"]


def test_a_trial_takes_rows_from_all_over_the_source(tmp_path):
    for part in range(40):
        write(tmp_path / "in", [row(10 * part + each) for each in range(10)], f"{part:02d}.parquet")
    seeds = [int(path.removeprefix("src/file").removesuffix(".py")) for path in paths_of(tmp_path / "in", limit=40)]
    assert len(seeds) == 40
    assert len({seed // 10 for seed in seeds}) == 16
    assert max(seed % 10 for seed in seeds) == 2
    assert paths_of(tmp_path / "in", limit=1) == ["src/file0.py"]
    assert len(paths_of(tmp_path / "in", limit=1000)) == 16 * 10
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text("\n".join([json.dumps(row(1)), *9 * ["{"]]))
    manifest = clean(open_source(tmp_path / "lines", SourceSettings(limit=3)), tmp_path / "out")
    assert {reason: sum(files for files, _ in some.values()) for reason, some in manifest["tally"].items()} == {
        "kept": 1,
        "malformed_json": 2,
    }
    with pytest.raises(ConfigError, match="limit=0 should be at least 1"):
        SourceSettings(limit=0)


def test_tables_beside_source_code_have_to_be_told(tmp_path):
    write(tmp_path / "in" / "data", [row(1)])
    (tmp_path / "in" / "data" / "load.py").write_text(code(2))
    with pytest.raises(SourceError, match=r"data/data\.parquet.*data/load\.py.*--layout usual or --layout checkouts"):
        open_source(tmp_path / "in")
    assert paths_of(tmp_path / "in", layout="usual") == ["src/file1.py"]
    assert paths_of(tmp_path / "in", layout="checkouts") == ["load.py"]
    (tmp_path / "in" / "data" / ".git").mkdir()
    assert paths_of(tmp_path / "in") == ["load.py"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("b.jsonl.xz", {}, r"b\.jsonl\.xz is of no format that is read; expected \.parquet"),
        ("b.arrow", {}, r"b\.arrow is of no format that is read"),
        ("b.csv", {}, r"b\.csv is of no format that is read"),
        ("b.md", {"data_dir": "data/python"}, "data_dir=data/python is for datasets of the Hub"),
        ("b.md", {"split": "test"}, "split=test is for datasets of the Hub"),
    ],
)
def test_what_would_be_passed_over_is_refused(tmp_path, name, settings, message):
    folder = write(tmp_path / "in", [row(1)])
    (folder / name).write_text("x")
    with pytest.raises(SourceError, match=message):
        open_source(folder, SourceSettings(**settings))


def test_the_language_of_rows_that_name_none_is_the_same_from_wherever_they_are_read(tmp_path):
    write(tmp_path / "data" / "cpp", [{"max_stars_repo_path": "a/b.h", "content": "int a;\n"}], "train.parquet")
    for place in ("data", "data/cpp", "data/cpp/train.parquet"):
        (unit,) = open_source(tmp_path / place).units
        assert unit.layout.language == "cpp"


def test_a_language_that_no_file_is_in_is_said_to_be_so(tmp_path):
    folder, asked = write(tmp_path / "in", [row(1)]), CleanSettings(languages=("python", "jvaa", "Kotlin"))
    with pytest.warns(UserWarning, match="^no file of .*/in is in") as told:
        clean(open_source(folder), tmp_path / "out", asked)
    assert [str(one.message).partition(" is in ")[2] for one in told] == [
        "`jvaa`; the languages are python",
        "`kotlin`; the languages are python",
    ]
    write(tmp_path / "untold", [{"path": "a.py", "content": code(1)}])
    with pytest.raises(ConfigError, match=r"no file is known to be in `jvaa`; did you mean `java`\?"):
        clean(open_source(tmp_path / "untold"), tmp_path / "other", asked)


def test_a_damaged_or_empty_file_is_said_to_be_so(tmp_path):
    path = tmp_path / "in" / "a.jsonl.gz"
    write_lines(path, *range(200))
    whole = path.read_bytes()
    for place in range(30, len(whole), len(whole) // 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(SourceError, match=r"a\.jsonl\.gz is damaged"):
            paths_of(tmp_path / "in")
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(SourceError, match="holds no row"):
        open_source(tmp_path / "in")
    with pytest.raises(SourceError, match="gone cannot be listed: No such file"):
        list(walk(tmp_path / "gone", ()))


def test_names_that_are_not_utf8_are_read_and_told_of(tmp_path):
    write(tmp_path / "in", [row(1), row(2, content="")])
    os.rename(tmp_path / "in" / "data.parquet", os.fsencode(tmp_path / "in") + b"/caf\xe9.parquet")
    os.rename(tmp_path / "in", os.fsencode(tmp_path) + b"/\xe9")
    manifest = clean(open_source(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")), tmp_path / "out")
    assert manifest["source"] == "\ufffd"
    assert manifest["units"][0][0] == "caf\ufffd.parquet#0"
