"""`python -m benchmarks [CASE] [flags]`: run one case, or with no name every case with its defaults.

Prints the machine, a table and notes; the last line is the same as JSON, and `--out` keeps both.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.records import as_cell, as_setting
from benchmarks.registry import CASES, Case, Result, load_cases
from moe_codegen.errors import MoECodegenError


def main() -> None:
    """Parse the command line and run what it names."""
    load_cases()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="case", metavar="CASE")
    for case in CASES.values():
        subparser = subparsers.add_parser(case.name, help=case.summary, description=case.summary)
        subparser.add_argument("--out", type=Path, help="folder that keeps the record (JSON) and the pictures")
        case.add_options(subparser)
    options = parser.parse_args()
    names = [options.case] if options.case else list(CASES)
    try:
        for name in names:
            run_case(CASES[name], options if options.case else subparsers.choices[name].parse_args([]))
    except MoECodegenError as error:
        sys.exit(f"error: {error}")


def run_case(case: Case, options: argparse.Namespace) -> None:
    """Run `case`, print its table, and its record as one last line of JSON."""
    console = Console()
    machine = describe_machine()
    console.print(f"[bold]{case.name}[/bold]: {case.summary}")
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), style="dim")
    result = case.run(options)
    if result.rows:
        console.print(as_table(result))
    for note in result.notes:
        console.print(note)
    for picture in result.pictures:
        console.print(f"drawn: {picture}")
    settings = {key: as_setting(value) for key, value in vars(options).items() if key not in ("out", "folder")}
    record = {"settings": settings, "machine": machine, "rows": result.rows, "notes": result.notes}
    line = json.dumps({"case": case.name, **record}, ensure_ascii=False)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{case.name}.json").write_text(line + "\n", encoding="utf-8")
    print(line)


def as_table(result: Result) -> Table:
    """The rows as a table: a column for each key, numbers to four significant digits."""
    columns = list(dict.fromkeys(key for row in result.rows for key in row))
    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if isinstance(result.rows[0].get(column), str) else "right")
    for row in result.rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*map(as_cell, cells))
    return table


if __name__ == "__main__":
    main()
