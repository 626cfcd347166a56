import sys
import tarfile

import pyarrow.parquet as pq
import pytest

from moe_codegen.data.pipeline import corpus
from moe_codegen.data.pipeline.corpus import CorpusSettings, build_corpus, read_packages
from moe_codegen.errors import ConfigError, SourceError
from tests.data.inputs import code

LICENSE = "Permission is hereby granted, free of charge, to any person obtaining a copy"


@pytest.fixture
def folders(tmp_path):
    for repo in range(4):
        for file in range(30):
            path = tmp_path / "checkouts" / f"repo{repo}" / "src" / f"f{file}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code(100 * repo + file))
        (tmp_path / "checkouts" / f"repo{repo}" / "LICENSE").write_text(
            LICENSE if repo else "GNU General Public License"
        )
    return [str(tmp_path / "checkouts" / f"repo{repo}") for repo in range(4)]


def test_a_corpus_of_checkouts_is_capped_and_permissive(tmp_path, folders):
    accounts = build_corpus({"folders": folders}, tmp_path / "out", CorpusSettings(megabytes=0.05, package_share=0.4))
    table = pq.read_table(tmp_path / "out" / "python.parquet")
    assert table.column_names == ["repo", "path", "content"]
    sizes = {}
    for one in table.to_pylist():
        sizes[one["repo"]] = sizes.get(one["repo"], 0) + len(one["content"])
    assert set(sizes) == {"repo1", "repo2", "repo3"}
    assert max(sizes.values()) <= 20_000
    assert 40_000 < sum(sizes.values()) == accounts["python"]["bytes"] <= 50_000


def test_packages_are_fetched_once_and_unpacked(tmp_path, monkeypatch):
    import zipfile

    asked = []

    def fetch(command, cwd, **_):
        asked.append(command)
        with zipfile.ZipFile(cwd / "thing-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("LICENSE", LICENSE)
            for file in range(5):
                wheel.writestr(f"thing/f{file}.py", code(file))

    monkeypatch.setattr(corpus.subprocess, "run", fetch)
    for name in ("out", "out"):
        build_corpus({"pypi": ["thing==1.0"]}, tmp_path / name, CorpusSettings())
    assert len(asked) == 1
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "thing==1.0" in asked[0]
    assert pq.read_table(tmp_path / "out" / "python.parquet")["repo"].unique().to_pylist() == ["pypi-thing"]


def test_versions_and_scopes_are_no_part_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.subprocess, "run", lambda *_, **__: None)
    for kind, name in (("npm", "@types/node@20.1"), ("npm", "eslint@9"), ("debian", "zlib=1:1.3"), ("pypi", "x==1")):
        corpus._fetch(kind, name, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"npm-types-node", "npm-eslint", "debian-zlib", "pypi-x"}


def test_bad_lists_and_missing_clients(tmp_path, monkeypatch):
    (tmp_path / "p.toml").write_text("cran = ['x']")
    with pytest.raises(ConfigError, match="unknown kind `cran`"):
        read_packages(tmp_path / "p.toml")
    (tmp_path / "p.toml").write_text("npm = ['x']")
    assert read_packages(tmp_path / "p.toml") == {"npm": ["x"]}


def test_all_packages_are_tried_before_those_that_failed_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SourceError, match=r"3 of 3 packages could not be fetched.*\nnpm is not installed.*\napt-get is not"
    ):
        build_corpus({"npm": ["x", "y"], "debian": ["z"]}, tmp_path / "out", CorpusSettings())


def test_of_an_archive_only_plain_files_are_taken_and_a_damaged_one_is_named(tmp_path):
    with tarfile.open(tmp_path / "thing.tar.gz", "w:gz") as tarred:
        link = tarfile.TarInfo("thing/outside")
        link.type, link.linkname = tarfile.SYMTYPE, "/opt/X11/include"
        tarred.addfile(link)
        (tmp_path / "f.py").write_text("x = 1\n")
        tarred.add(tmp_path / "f.py", "thing/f.py")
    corpus._unpack(tmp_path / "thing.tar.gz", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "thing").iterdir()] == ["f.py"]
    (tmp_path / "half.tar.gz").write_bytes((tmp_path / "thing.tar.gz").read_bytes()[:60])
    with pytest.raises(SourceError, match=r"half\.tar\.gz cannot be unpacked"):
        corpus._unpack(tmp_path / "half.tar.gz", tmp_path / "out")
