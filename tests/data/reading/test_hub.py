"""The Hub through the real `datasets` and `huggingface_hub`, against a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.inputs import code, read, write
from tests.data.reading.served_hub import COMMIT, served
from tests.tiny import save_tokenizer

PLAN = Path(__file__).parents[3] / "examples" / "data.toml"

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


# The benchmarks of PLAN, by the splits of their configurations on the Hub, of which PLAN names some.
BENCHMARKS = {
    "openai/openai_humaneval": ["openai_humaneval/test"],
    "google-research-datasets/mbpp": ["full/train", "full/test", "sanitized/test"],
    "nuprl/MultiPL-E": ["humaneval-java/test", "humaneval-js/test", "humaneval-cpp/test", "humaneval-rs/test"],
}


def asked_in(split):
    """What the one problem of a split asks for, and no other problem."""
    return f"Return whatever it is that the {split.replace('/', ' ')} asks for, no more and no less."


def problem(dataset, split):
    """A row in the columns under which its owner published the benchmark."""
    asked = asked_in(split)
    return {
        "openai/openai_humaneval": {"task_id": "HumanEval/0", "prompt": f'def f():\n    """{asked}"""\n'},
        "google-research-datasets/mbpp": {"task_id": 11, "text": asked, "code": f"def f():\r\n    # {asked}"},
        "nuprl/MultiPL-E": {"name": "HumanEval_0", "prompt": f"// {asked}\n", "stop_tokens": ["\n}"]},
    }[dataset]


def benchmarks_folder(folder):
    """The benchmarks as the Hub keeps them: a Parquet file a split, told apart by what the cards say."""
    for dataset, splits in BENCHMARKS.items():
        card = ["---", "configs:"]
        for split in splits:
            config, name = split.split("/")
            if f"- config_name: {config}" not in card:
                card += [f"- config_name: {config}", "  data_files:"]
            card += [f"  - split: {name}", f"    path: {split}-*"]
            write(folder / dataset / config, [problem(dataset, split)], f"{name}-00000-of-00001.parquet")
        (folder / dataset / "README.md").write_text("\n".join([*card, "---"]))


def repositories_folder(folder):
    """Repositories under a licence; the last has a file for each problem."""
    files = {f"repo{seed:02d}/file.py": code(seed) for seed in range(40)}
    for seed, split in enumerate(split for splits in BENCHMARKS.values() for split in splits):
        files[f"repo39/{split.replace('/', '-')}.py"] = f"{code(40 + seed)}# {asked_in(split)}\n"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        licence = "Permission is hereby granted, free of charge, to any person obtaining a copy"
        (folder / path).with_name("LICENSE").write_text(licence)


def dataset_folder(folder):
    """Three datasets as the Hub keeps them: The Stack in two shards, a gated one, one with rows that are no text."""
    python = folder / "bigcode" / "the-stack" / "data" / "python"
    for shard in range(2):
        write(python, [the_stack(10 * shard + each) for each in range(10)], f"data-{shard:05d}-of-00002.parquet")
    write(python.with_name("java"), [the_stack(20)])
    write(folder / "bigcode" / "gated", [the_stack(0)])
    content = pa.array([code(0).encode(), None, b"# \xff\n", code(3).encode()], pa.binary()).view(pa.string())
    (folder / "owner" / "spoiled").mkdir(parents=True)
    pq.write_table(pa.table({"content": content}), folder / "owner" / "spoiled" / "train.parquet")
    for name in ("damaged", "bad-benchmark"):
        (folder / "owner" / name).mkdir()
        (folder / "owner" / name / "test.jsonl").write_text('{"content": ')
    for name in ("part-00000.parquet", "part-00007.parquet", "data/own.parquet"):
        write((folder / "me" / "older" / name).parent, [the_stack(0)], Path(name).name)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder in which each of the commands worked, and what it said on standard error, by its OUT."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "examples").mkdir()
    shutil.copy(PLAN, folder / "examples")
    repositories_folder(folder / "examples" / "repositories")
    benchmarks_folder(folder / "hub")
    save_tokenizer(folder / "hub" / "bigcode" / "gpt_bigcode-santacoder")
    commands = [
        ["prepare", f"examples/{PLAN.name}", "prepared"],
        ["clean", "bigcode/the-stack", "stack", "--data-dir", "data/python"],
        ["clean", "bigcode/the-stack", "stack", "--data-dir", "data/java"],
        ["clean", "owner/spoiled", "spoiled", "--language", "python"],
        ["inspect", "bigcode/gated", "gated"],
        ["inspect", "bigcode/missing", "missing"],
        ["decontaminate", "stack", "no-benchmark", "--benchmarks", "openai/missing:test"],
        ["inspect", "owner/spoiled", "revision", "--revision", "v9"],
        ["inspect", "owner/damaged", "damaged", "--split", "test"],
        ["decontaminate", "stack", "bad-benchmark", "--benchmarks", "owner/bad-benchmark"],
        ["publish", "stack", "me/stack"],
        ["inspect", "me/stack", "again"],
        ["publish", "stack", "owner/spoiled"],
        ["publish", "stack", "me/older", "--public"],
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
    folder, said = run
    rows = read(folder / "stack")
    assert [one["path"] for one in rows] == [f"src/file{seed}.py" for seed in range(20)]
    assert [one["content"] for one in rows] == [code(seed) for seed in range(20)]
    assert {(one["language"], one["stars"]) for one in rows} == {("python", 0)}
    units = json.loads((folder / "stack" / "manifest.json").read_text())["units"]
    assert [name for name, *_ in units] == [f"bigcode/the-stack@{COMMIT[:12]}#{shard}" for shard in range(2)]
    assert said["stack"].startswith("error: stack holds a run that differs in source")  # asked for Java then


def test_the_example_plan_runs_as_it_stands_and_looks_for_what_it_names_of_its_benchmarks(run):
    folder, said = run
    assert "error" not in said["prepared"]
    manifest = json.loads((folder / "prepared" / "3-decontaminate" / "manifest.json").read_text())
    assert manifest["problems_found"] == {
        "openai/openai_humaneval:HumanEval/0": 1,
        "google-research-datasets/mbpp:full:11": 1,
        **{f"nuprl/MultiPL-E:humaneval-{language}:HumanEval_0": 1 for language in ("java", "js", "cpp")},
    }
    assert manifest["settings"]["benchmarks"][1] == "google-research-datasets/mbpp:full"
    assert manifest["benchmark_commits"] == dict.fromkeys(manifest["settings"]["benchmarks"], COMMIT)
    left = {one["path"] for one in read(folder / "prepared" / "3-decontaminate")}
    assert left == {"file.py", "full-train.py", "sanitized-test.py", "humaneval-rs-test.py"}


def test_a_base_on_the_hub_gives_the_tokenizer_of_the_packed_sequences(run):
    folder, _ = run
    theirs, ours = folder / "hub" / "bigcode" / "gpt_bigcode-santacoder", folder / "prepared" / "6-tokenizer"
    tokenizers = [json.loads((each / "tokenizer.json").read_text()) for each in (theirs, ours)]
    assert tokenizers[0]["model"] == tokenizers[1]["model"]
    assert tokenizers[0]["added_tokens"] == tokenizers[1]["added_tokens"]
    assert json.loads((ours / "manifest.json").read_text())["settings"]["base"] == "bigcode/gpt_bigcode-santacoder"
    packed = read(folder / "prepared" / "7-pack-train")
    assert {len(one["input_ids"]) for one in packed} == {2048}
    assert max(max(one["input_ids"]) for one in packed) < len(tokenizers[0]["model"]["vocab"])


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
        ("missing", "bigcode/missing is no file or folder here and no dataset of the Hub, or a private one: check"),
        ("no-benchmark", "openai/missing is no file or folder here and no dataset of the Hub, or a private one: check"),
        ("revision", "owner/spoiled has no such revision"),
        ("damaged", "owner/damaged cannot be read from the Hub: "),
        ("bad-benchmark", "owner/bad-benchmark cannot be read from the Hub: "),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(run, out, message):
    folder, said = run
    assert said[out].splitlines()[-1].startswith(f"error: {message}")
    assert not (folder / out).exists()


def test_what_is_published_is_the_card_and_its_shards_and_is_read_again(run):
    folder, said = run
    published = folder / "hub" / "me" / "stack"
    assert said["me/stack"] == said["again"] == ""
    names = {"README.md", "part-00000.parquet", "part-00001.parquet"}
    assert {str(path.relative_to(published)) for path in published.rglob("*")} == names
    assert all((published / name).read_bytes() == (folder / "stack" / name).read_bytes() for name in names)
    assert json.loads((folder / "again" / "manifest.json").read_text())["tally"]["kept"]["python"][0] == 20


def test_an_earlier_publications_shards_that_the_card_still_names_are_deleted(run):
    folder, said = run
    assert said["me/older"] == ""
    published = folder / "hub" / "me" / "older"
    names = {path.name for path in published.iterdir()}
    assert names == {"README.md", "part-00000.parquet", "part-00001.parquet", "data"}
    assert (published / "data" / "own.parquet").is_file()


def test_nothing_is_published_where_everybody_sees_it_unasked(run):
    folder, said = run
    assert said["owner/spoiled"].startswith("error: owner/spoiled is public already; give --public")
    assert not (folder / "hub" / "owner" / "spoiled" / "README.md").exists()
