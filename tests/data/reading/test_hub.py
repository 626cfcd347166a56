"""The Hub through the real `datasets` and `huggingface_hub`, against a server on this machine."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.inputs import code, read, write
from tests.data.reading.served_hub import COMMIT, served

# Several commands in one process, for the imports are what takes time; `HF_ENDPOINT` is read by them.
PROGRAM = """
import json, sys
from moe_codegen.cli import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit:
        pass
    print("--end--", file=sys.stderr)
"""


def the_stack(seed):
    """A row as The Stack has it."""
    return {
        "hexsha": f"{seed:040x}",
        "lang": "Python",
        "content": code(seed),
        "max_stars_repo_name": f"owner/repo{seed}",
        "max_stars_repo_path": f"src/file{seed}.py",
        "max_stars_repo_licenses": ["MIT"],
        "max_stars_count": None,
    }


def dataset_folder(folder):
    """Three datasets as the Hub keeps them: The Stack in two shards, a gated one, one with rows that are no text."""
    python = folder / "bigcode" / "the-stack" / "data" / "python"
    for shard in range(2):
        write(python, [the_stack(10 * shard + each) for each in range(10)], f"data-{shard:05d}-of-00002.parquet")
    write(folder / "bigcode" / "gated", [the_stack(0)])
    content = pa.array([code(0).encode(), None, b"# \xff\n", code(3).encode()], pa.binary()).view(pa.string())
    (folder / "owner" / "spoiled").mkdir(parents=True)
    pq.write_table(pa.table({"content": content}), folder / "owner" / "spoiled" / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder in which each of the commands worked, and what it said on standard error, by its OUT."""
    folder = tmp_path_factory.mktemp("work")
    commands = [
        ["clean", "bigcode/the-stack", "stack", "--data-dir", "data/python"],
        ["clean", "owner/spoiled", "spoiled", "--language", "python"],
        ["inspect", "bigcode/gated", "gated"],
        ["inspect", "bigcode/missing", "missing"],
        ["inspect", "owner/spoiled", "revision", "--revision", "v9"],
        ["publish", "stack", "me/stack"],
        ["inspect", "me/stack", "again"],
        ["publish", "stack", "owner/spoiled"],
    ]
    with served(dataset_folder(folder / "hub"), gated="bigcode/gated") as address:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {**kept, "HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_any"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([["data", *each, "--quiet"] for each in commands])],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
    said = done.stderr.split("--end--\n")
    assert len(said) == len(commands) + 1, done.stderr
    return folder, dict(zip((each[2] for each in commands), said, strict=False))


def test_the_stack_is_streamed_shard_by_shard_at_one_commit(run):
    folder, _ = run
    rows = read(folder / "stack")
    assert [one["path"] for one in rows] == [f"src/file{seed}.py" for seed in range(20)]
    assert [one["content"] for one in rows] == [code(seed) for seed in range(20)]
    assert {(one["language"], one["stars"]) for one in rows} == {("python", 0)}
    units = json.loads((folder / "stack" / "manifest.json").read_text())["units"]
    assert [name for name, _ in units] == [f"bigcode/the-stack@{COMMIT[:12]}#{shard}" for shard in range(2)]


def test_rows_that_are_no_text_are_counted_drops(run):
    folder, _ = run
    tally = json.loads((folder / "spoiled" / "manifest.json").read_text())["tally"]
    assert {reason: some["python"][0] for reason, some in tally.items()} == {
        "kept": 2,
        "null_content": 1,
        "invalid_utf8": 1,
    }


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("gated", "bigcode/gated is gated: open its page on the Hub, accept its terms with your account, then sign in"),
        ("missing", "bigcode/missing is no dataset of the Hub, or a private one: check its name"),
        ("revision", "owner/spoiled has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(run, out, message):
    folder, said = run
    assert said[out].startswith(f"error: {message}")
    assert not (folder / out).exists()


def test_what_is_published_is_the_card_and_its_shards_and_is_read_again(run):
    folder, said = run
    published = folder / "hub" / "me" / "stack"
    assert said["me/stack"] == said["again"] == ""
    names = {"README.md", "part-00000.parquet", "part-00001.parquet"}
    assert {str(path.relative_to(published)) for path in published.rglob("*")} == names
    assert all((published / name).read_bytes() == (folder / "stack" / name).read_bytes() for name in names)
    assert json.loads((folder / "again" / "manifest.json").read_text())["tally"]["kept"]["python"][0] == 20


def test_nothing_is_published_where_everybody_sees_it_unasked(run):
    folder, said = run
    assert said["owner/spoiled"].startswith("error: owner/spoiled is public already; give --public")
    assert not (folder / "hub" / "owner" / "spoiled" / "README.md").exists()
