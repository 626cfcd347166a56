"""MultiPL-E's files come back as they were, and a damaged one is named."""

import gzip
import json

import pytest

from moe_codegen import whole_file
from moe_codegen.errors import ResultError
from moe_codegen.evaluation.multipl_e import (
    Completions,
    Result,
    completion_files,
    folder_name,
    parse_folder_name,
    read_completions,
    read_results,
    result_files,
    write_completions,
    write_results,
)
from moe_codegen.evaluation.run_folder import language_folders
from tests.evaluation.programs import problem

COMPLETIONS = Completions(
    **vars(problem("py")), completions=("    a\n", "    b\n"), temperature=0.2, top_p=0.95, max_tokens=512
)
RESULT = Result("x", 1, "", "Traceback", 1, "Exception")


def read_gz(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def test_a_completions_file_has_multipl_es_fields_in_its_order(tmp_path):
    path = write_completions(tmp_path, COMPLETIONS)
    assert path.name == "twice.json.gz"
    fields = ["name", "language", "temperature", "top_p", "max_tokens", "prompt", "tests", "completions", "stop_tokens"]
    assert list(read_gz(path)) == fields
    assert read_completions(path) == COMPLETIONS


def test_fields_of_others_survive_the_round_trip(tmp_path):
    record = COMPLETIONS.record() | {"tokens_info": [1, 2]}
    (tmp_path / "twice.json").write_text(json.dumps(record))
    read = read_completions(tmp_path / "twice.json")
    assert read_gz(write_completions(tmp_path, read)) == json.loads(json.dumps(record))


def test_a_folder_of_uncompressed_files_is_one(tmp_path):
    for folder in (tmp_path, tmp_path / "later"):
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text("{}")  # ours, and no completions
    with pytest.raises(ResultError, match="holds no completions and no results"):
        language_folders(tmp_path)
    (tmp_path / "later" / "twice.json").write_text(json.dumps(COMPLETIONS.record()))
    assert language_folders(tmp_path) == [tmp_path / "later"]


def test_a_result_file_has_multipl_es_fields_in_its_order(tmp_path):
    path = write_results(tmp_path, COMPLETIONS, [RESULT])
    record = read_gz(path)
    fields = ["name", "language", "temperature", "top_p", "max_tokens", "prompt", "tests", "stop_tokens", "results"]
    assert list(record) == fields
    assert list(record["results"][0]) == ["program", "timestamp", "stdout", "stderr", "exit_code", "status"]
    assert read_results(path).results == (RESULT,)


def test_the_same_content_is_the_same_file(tmp_path):
    first = write_completions(tmp_path, COMPLETIONS).read_bytes()
    assert write_completions(tmp_path, COMPLETIONS).read_bytes() == first


def test_a_program_is_prompt_completion_and_tests():
    assert COMPLETIONS.programs[1] == f"{COMPLETIONS.prompt}    b\n\n{COMPLETIONS.tests}"


def test_only_status_ok_with_exit_code_0_has_passed():
    assert Result("", 0, "", "", 0, "OK").passed
    assert not Result("", 0, "", "", 1, "OK").passed
    assert not Result("", 0, "", "", 0, "Exception").passed


def test_folders_are_named_as_multipl_e_names_them():
    name = folder_name("humaneval", "py", "bigcode/tiny-model", 0.2)
    assert name == "humaneval-py-bigcode_tiny_model-0.2-reworded"
    assert parse_folder_name(name) == ("humaneval", "py")
    assert parse_folder_name("somewhere") is None


def test_results_are_not_taken_for_completions(tmp_path):
    write_completions(tmp_path, COMPLETIONS)
    write_results(tmp_path, COMPLETIONS, [RESULT])
    assert list(completion_files(tmp_path)) == list(result_files(tmp_path)) == ["twice"]
    assert completion_files(tmp_path)["twice"] != result_files(tmp_path)["twice"]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"{}"])
def test_a_damaged_file_is_named(damage, tmp_path):
    for write, read in ((write_completions, read_completions), (write_results, read_results)):
        path = write(tmp_path, COMPLETIONS, *([[RESULT]] if write is write_results else []))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ResultError, match=path.name):
            read(path)


@pytest.mark.parametrize(("field", "wrong"), [("prompt", None), ("completions", None), ("completions", [None])])
def test_a_file_with_a_field_of_another_type_is_named(field, wrong, tmp_path):
    path = tmp_path / "twice.json"
    path.write_text(json.dumps(COMPLETIONS.record() | {field: wrong}))
    with pytest.raises(ResultError, match=rf"twice\.json is no completions file of MultiPL-E: `{field}` in it"):
        read_completions(path)


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_completions(tmp_path, COMPLETIONS)
    monkeypatch.setattr(whole_file.os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_completions(tmp_path, Completions(**{**vars(COMPLETIONS), "completions": ()}))
    assert read_completions(path) == COMPLETIONS
    assert list(completion_files(tmp_path)) == ["twice"]
