import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from moe_codegen.data.passes.stage import read_manifest
from moe_codegen.data.pipeline import fetch
from moe_codegen.data.pipeline.corpus import CorpusSettings, build_corpus, read_corpus_settings
from moe_codegen.data.pipeline.fetch import fetch_packages
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import ConfigError, ResumeError, SourceError
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
    settings = CorpusSettings(folders=tuple(folders), megabytes=0.05, package_share=0.4)
    manifest = build_corpus(settings, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "python.parquet").to_pylist()
    sizes = {}
    for row in rows:
        sizes[row["repo"]] = sizes.get(row["repo"], 0) + len(row["content"])
    assert set(sizes) == {"repo1", "repo2", "repo3"}
    assert max(sizes.values()) <= 20_000
    assert 40_000 < sum(sizes.values()) <= 50_000
    assert {tuple(row["licenses"]) for row in rows} == {("MIT",)}
    left = manifest["history"][-1]["rows"] - len(rows)
    assert manifest["tally"]["kept"]["python"] == [len(rows), sum(sizes.values())]
    assert manifest["tally"]["beyond_share"]["python"][0] == left > 0
    assert [stage["verb"] for stage in manifest["history"]] == ["clean", "dedup"]


def test_a_corpus_is_input_like_any_other_folder_and_is_not_made_twice(tmp_path, folders):
    """What it was made from is gone: reading it again, `clean` and the packages' own tables with it, counts twice."""
    settings = CorpusSettings(folders=tuple(folders))
    manifest = build_corpus(settings, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "manifest.json",
        "python.parquet",
    ]
    source = open_source(tmp_path / "out")
    assert source.has_licenses
    assert sum(batch.rows.num_rows for unit in source.units for batch in unit.batches()) == manifest["rows"] == 90
    assert build_corpus(settings, tmp_path / "out") == manifest
    with pytest.raises(ResumeError, match="differs in megabytes"):
        build_corpus(replace(settings, megabytes=1.0), tmp_path / "out")


def test_packages_are_unpacked_and_those_that_were_fetched_are_kept(tmp_path, monkeypatch):
    asked = []

    def fetch_all_but_one(command, cwd, **_):
        asked.append(command)
        if command[-1] == "other" and len(asked) < 3:
            raise subprocess.CalledProcessError(100, command, stderr="E: Unable to find a source package for other")
        with zipfile.ZipFile(cwd / "thing-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("LICENSE", LICENSE)
            for file in range(5):
                wheel.writestr(f"thing/f{file}.py", code(file))

    monkeypatch.setattr(fetch.subprocess, "run", fetch_all_but_one)
    settings = CorpusSettings(pypi=("thing==1.0",), debian=("other",))
    with pytest.raises(
        SourceError, match=r"1 of 2 packages could not be fetched(?s:.*)Unable to find a source package"
    ):
        build_corpus(settings, tmp_path / "out")
    assert read_manifest(tmp_path / "out") is None
    build_corpus(settings, tmp_path / "out")
    assert [command[-1] for command in asked] == ["thing==1.0", "other", "other"]
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert pq.read_table(tmp_path / "out" / "python.parquet")["repo"].unique().to_pylist() == ["debian-other"]


def test_versions_and_scopes_are_no_part_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: None)
    fetch_packages({"npm": ["@types/node@20.1", "eslint@9"], "debian": ["zlib=1:1.3"], "pypi": ["x==1"]}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"npm-types-node", "npm-eslint", "debian-zlib", "pypi-x"}


def test_a_list_of_packages_is_read_with_paths_relative_to_it(tmp_path):
    (tmp_path / "p.toml").write_text("npm = ['x']\nfolders = ['mine']")
    assert read_corpus_settings(tmp_path / "p.toml") == CorpusSettings(npm=("x",), folders=(str(tmp_path / "mine"),))
    with pytest.raises(SourceError, match="mine is no folder"):
        build_corpus(CorpusSettings(folders=(str(tmp_path / "mine"),)), tmp_path / "out")
    with pytest.raises(ConfigError, match="`folders` has two called src"):
        CorpusSettings(folders=("one/src", "two/src/"))
    with pytest.raises(ConfigError, match="megabytes=0 should lie between 0 and inf"):
        CorpusSettings(megabytes=0)
    (tmp_path / "p.toml").write_text("cran = ['x']")
    with pytest.raises(ConfigError, match="unknown key `cran`"):
        read_corpus_settings(tmp_path / "p.toml")


def test_all_packages_are_tried_before_those_that_failed_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SourceError, match=r"3 of 3 packages could not be fetched.*\nnpm is not installed.*\napt-get is not"
    ):
        fetch_packages({"npm": ["x", "y"], "debian": ["z"]}, tmp_path / "out")


def test_of_an_archive_only_plain_files_are_taken_and_a_damaged_one_is_named(tmp_path):
    with tarfile.open(tmp_path / "thing.tar.gz", "w:gz") as tarred:
        link = tarfile.TarInfo("thing/outside")
        link.type, link.linkname = tarfile.SYMTYPE, "/opt/X11/include"
        tarred.addfile(link)
        (tmp_path / "f.py").write_text("x = 1\n")
        tarred.add(tmp_path / "f.py", "thing/f.py")
    fetch._unpack(tmp_path / "thing.tar.gz", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "thing").iterdir()] == ["f.py"]
    (tmp_path / "half.tar.gz").write_bytes((tmp_path / "thing.tar.gz").read_bytes()[:60])
    with pytest.raises(SourceError, match=r"half\.tar\.gz cannot be unpacked"):
        fetch._unpack(tmp_path / "half.tar.gz", tmp_path / "out")
