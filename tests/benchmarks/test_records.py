"""The page of records says what the records say, and how each was made."""

import argparse
import json

import pytest

from benchmarks.records import PAGE, RESULTS, as_markdown, as_page, as_setting, command_of
from benchmarks.registry import CASES, load_cases


def test_the_page_is_what_its_command_makes_of_the_records():
    assert PAGE.read_text() == as_page(RESULTS), "run python -m benchmarks.records"


@pytest.mark.parametrize(
    ("case", "flags"),
    [
        ("import", []),
        ("layer-cpu", ["--tokens", "1", "32", "--dtypes", "bf16", "--seconds", "0.2"]),
        ("decode", ["--only", "mixture", "--only", "mixture int8"]),
        ("evaluate", ["--languages", "java", "--ours-only"]),
    ],
)
def test_the_command_of_a_record_is_the_one_that_made_it(case, flags):
    load_cases()
    parser = argparse.ArgumentParser()
    CASES[case].add_options(parser)
    settings = {name: as_setting(value) for name, value in vars(parser.parse_args(flags)).items()}
    command = command_of({"case": case, "settings": settings})
    quoted = ["'mixture int8'" if flag == "mixture int8" else flag for flag in flags]
    assert sorted(command.split()) == sorted(" ".join(["python -m benchmarks", case, *quoted]).split())


def test_every_record_is_of_a_case_that_there_is():
    load_cases()
    cases = {json.loads(path.read_text()).get("case") for path in RESULTS.glob("*.json")} - {None}
    assert cases <= set(CASES)


def test_a_table_has_a_column_for_each_key_of_any_row():
    rows = [{"what": "a", "s": 1.23456}, {"what": "b", "MB": 3}]
    assert as_markdown(rows).splitlines() == [
        "| what | s | MB |",
        "| --- | ---: | ---: |",
        "| a | 1.235 |  |",
        "| b |  | 3 |",
    ]
