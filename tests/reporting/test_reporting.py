"""Sizes, tables and progress as a person sees them."""

import io

import pytest
from rich.console import Console

from moe_codegen.reporting import bytes_bar, format_bytes, no_progress, table


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (13_530_000_000, "13.53 GB"),
        (2_500_000_000_000, "2.50 TB"),
        (-1500, "-1.50 kB"),
    ],
)
def test_sizes_are_in_decimal_units(nbytes, text):
    assert format_bytes(nbytes) == text


def drawn(renderable):
    console = Console(file=io.StringIO(), width=60)
    console.print(renderable)
    return console.file.getvalue().splitlines()


def test_numbers_stand_right_and_words_left_and_thousands_are_marked():
    lines = drawn(table(("name", "count"), [("a", 1), ("long name", 1234567)]))
    assert [line.strip() for line in lines if line.strip().startswith(("a", "long"))] == [
        "a                   1",
        "long name   1,234,567",
    ]


def test_a_table_may_be_empty():
    assert "name" in drawn(table(("name",), []))[1]


def test_brackets_in_a_cell_are_text():
    assert any("[bold]" in line for line in drawn(table(("name",), [("[bold]",)])))


def test_a_bar_shows_the_step_and_its_bytes_on_a_terminal_and_nothing_elsewhere():
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
        with bytes_bar(console) as progress:
            advance = progress("writing", 2_000_000, 500_000)
            advance(1_500_000)
        shown = console.file.getvalue()
        assert ("writing" in shown and "2.0/2.0 MB" in shown) == is_terminal
        assert bool(shown) == is_terminal


def test_no_progress_takes_what_a_bar_takes():
    no_progress("step", 1, 0)(1)
