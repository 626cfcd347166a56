import os

import pytest

from moe_codegen.data.filtering.clean import clean
from moe_codegen.data.reading import checkouts
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import SourceError
from tests.data.inputs import code

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy"


def make(folder, files):
    """Files of a folder by their names in it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def rows_of(folder):
    """Repository, path and licences of each row."""
    rows = [one for unit in open_source(folder).units for batch in unit.batches() for one in batch.rows.to_pylist()]
    return [(one["repo"], one["path"], one["licenses"]) for one in rows]


def test_a_folder_of_checkouts(tmp_path):
    files = {
        "one/LICENSE": MIT,
        "one/a.py": code(1),
        "one/sub/b.py": "# SPDX-License-Identifier: GPL-3.0\n" + code(2),
        "one/notes.unknown": "text",
        "one/.git/hook.py": code(3),
        "two/c.java": code(4),
        "three/package-1.0/d.py": code(5),
        "three/package-1.0/COPYING": "GNU General Public License",
        "three/package-1.0/vendored/deep/LICENSE": "Apache License, Version 2.0",
    }
    assert rows_of(make(tmp_path, files)) == [
        ("one", "a.py", ["MIT"]),
        ("one", "sub/b.py", ["GPL-3.0"]),
        ("three", "package-1.0/d.py", ["GPL-2.0"]),
        ("two", "c.java", None),
    ]


@pytest.mark.parametrize(
    ("files", "licenses"),
    [
        ({"third_party/zlib/LICENSE": MIT}, None),
        ({"LICENSE": "Copyright Acme. All rights reserved.", "LICENSE-third-party": MIT}, None),
        ({"LICENSE": "Copyright Acme. All rights reserved.", "LICENSE-MIT": MIT}, None),
        ({"LICENSE": MIT, "src/LICENSE": "All rights reserved."}, None),
        ({"LICENSE": MIT, "src/licenses.py": "NAMES = []\n"}, ["MIT"]),
        ({"COPYRIGHT": "All rights reserved.", "LICENSE-MIT": MIT}, ["MIT"]),
        ({"package-1.0.dist-info/licenses/LICENSE": MIT}, ["MIT"]),
    ],
)
def test_a_file_is_under_the_licence_file_nearest_above_it(tmp_path, files, licenses):
    rows = rows_of(
        make(tmp_path / "in", {f"acme/{name}": text for name, text in files.items()} | {"acme/src/a.py": ""})
    )
    assert [found for _, path, found in rows if path == "src/a.py"] == [licenses]


def test_one_checkout_is_one_repository(tmp_path):
    make(tmp_path / "one", {"setup.py": code(1), "src/a.py": code(2), "tests/b.py": code(3), "LICENSE": MIT})
    with pytest.raises(SourceError, match=r"setup\.py is in no repository: each folder of .* is one"):
        open_source(tmp_path / "one")
    (tmp_path / "one" / ".git").mkdir()
    assert rows_of(tmp_path / "one") == [("one", path, ["MIT"]) for path in ("setup.py", "src/a.py", "tests/b.py")]


def test_names_that_are_not_utf8_are_replaced_in_rows_alone(tmp_path):
    folder = os.fsencode(tmp_path) + b"/in/caf\xe9"
    os.makedirs(folder)
    with open(folder + b"/\xe9.py", "w") as file:
        file.write(code(1))
    assert rows_of(tmp_path / "in") == [("caf\ufffd", "\ufffd.py", None)]


def test_a_file_too_large_to_be_anybodys_source_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkouts, "_LARGEST", 9)
    make(tmp_path / "in", {"one/a.py": code(1), "one/b.py": "x = 1\n", "one/LICENSE": MIT})
    manifest = clean(open_source(tmp_path / "in"), tmp_path / "out")
    assert {reason: some["python"][0] for reason, some in manifest["tally"].items()} == {
        "too_large": 1,
        "comment_fraction": 1,
    }
