"""The same files are chosen whatever their order, and never more of a repository than was said."""

import hashlib
import json
from collections import Counter

import pytest

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.held_out.documents import digest_of, read_documents, shortened
from moe_codegen.metrics import Document
from tests.evaluation.repositories import FILES, write_repositories


def rows(count):
    return [
        {"repo": f"r{i % 3}", "path": f"{i}.py", "language": "python", "content": f"x = {i}\n"} for i in range(count)
    ]


def write_rows(path, some):
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


def test_a_folder_of_repositories_is_read_by_language(tmp_path):
    documents = read_documents(write_repositories(tmp_path), ["python", "js"], documents=9, per_repository=9)
    assert {document.name for document in documents} == {"alpha/stack.py", "beta/add.py", "beta/stack.js"}
    assert all(document.text == FILES[document.name] for document in documents)
    assert {document.repository for document in documents} == {"alpha", "beta"}


def test_the_choice_depends_on_contents_and_seed_alone(tmp_path):
    some = rows(30)
    forwards = write_rows(tmp_path / "a.jsonl", some)
    backwards = write_rows(tmp_path / "b.jsonl", some[::-1])
    chosen, again, other = (
        read_documents(path, ["python"], documents=7, per_repository=3, seed=seed)
        for path, seed in ((forwards, 0), (backwards, 0), (forwards, 1))
    )
    assert chosen == again
    assert len(chosen) == 7
    assert max([d.repository for d in chosen].count(f"r{i}") for i in range(3)) == 3
    assert digest_of(chosen) == digest_of(again) != digest_of(other)


def test_the_choice_made_while_reading_is_that_of_sorting_all(tmp_path):
    some = [row | {"path": f"{number % 50}.py"} for number, row in enumerate(rows(120))]  # some names twice
    file = write_rows(tmp_path / "a.jsonl", some)
    expected, of_repository = {}, Counter()
    for row in sorted(some, key=lambda row: hashlib.sha256(f"3:{row['content']}".encode()).hexdigest()):
        name = f"{row['repo']}/{row['path']}"
        if len(expected) < 25 and of_repository[row["repo"]] < 10 and name not in expected:
            expected[name] = row["content"]
            of_repository[row["repo"]] += 1
    chosen = read_documents(file, ["python"], documents=25, per_repository=10, seed=3)
    assert [(document.name, document.text) for document in chosen] == list(expected.items())


def test_what_cannot_be_measured_is_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown language 'cobol'"):
        read_documents(write_rows(tmp_path / "a.jsonl", rows(1)), ["cobol"], documents=1, per_repository=1)
    with pytest.raises(ConfigError, match="no java file"):
        read_documents(tmp_path / "a.jsonl", ["java"], documents=1, per_repository=1)
    for half in ("train", "validation"):
        (tmp_path / "split" / half).mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds training files too"):
        read_documents(tmp_path / "split", ["python"], documents=1, per_repository=1)


def test_a_long_file_is_cut_at_a_line_end():
    document = Document("a", "r", "python", "one\ntwo\nthree\n")
    assert shortened(document, 9).text == "one\ntwo\n"
    assert shortened(document, 2).text == "on"
    assert shortened(document, 100) == document
