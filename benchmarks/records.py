"""`python -m benchmarks.records`: every record of `benchmarks/results` as one page, its README.md.

The figures that this project claims are on that page or follow from it; nothing on it is written by hand.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from benchmarks.registry import CASES, Row, load_cases

RESULTS = Path(__file__).parent / "results"
PAGE = RESULTS / "README.md"
HEAD = """# What was measured

Made by `python -m benchmarks.records` from the records in this folder, each of which `python -m benchmarks CASE --out
benchmarks/results` wrote. Times are from small, noisy machines: compare within a table, not between two.
"""
# Their figures are curves and long tables: a page of their own tells them.
TOLD_ELSEWHERE = {"study": "study.md"}


def main() -> None:
    """Write the page."""
    PAGE.write_text(as_page(RESULTS))
    print(PAGE)


def as_page(folder: Path) -> str:
    """The page of all records in `folder`, in the order of their names."""
    load_cases()
    records = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    sections = [as_section(path, record) for path, record in records if record.get("case") in CASES]
    return "\n".join([HEAD, *sections])


def as_section(path: Path, record: dict[str, Any]) -> str:
    """One record: what was asked, the command, the machine, the table, the notes, the picture."""
    case = CASES[record["case"]]
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    parts = [f"## {path.stem}", f"{case.summary[0].upper()}{case.summary[1:]}.", f"`{command_of(record)}`", machine]
    if case.name in TOLD_ELSEWHERE:
        parts.append(f"[The whole of it]({TOLD_ELSEWHERE[case.name]}).")
    else:
        parts += [as_markdown(record["rows"]), "\n".join(f"- {note}" for note in record["notes"])]
    picture = path.with_suffix(".png")
    if picture.exists():
        parts.append(f"![{case.summary}]({picture.name})")
    return "\n\n".join(part for part in parts if part) + "\n"


def command_of(record: dict[str, Any]) -> str:
    """The command that measures the same: the flags whose values are not the case's defaults."""
    parser = argparse.ArgumentParser()
    CASES[record["case"]].add_options(parser)
    words = ["python", "-m", "benchmarks", record["case"]]
    for action in parser._actions:
        value = record["settings"].get(action.dest)
        if value is None or value == as_setting(action.default):
            continue
        values = value.split(", ")
        flag = action.option_strings[0]
        if isinstance(action, argparse._AppendAction):
            words += [word for one in values for word in (flag, one)]
        else:
            words += [flag] if action.nargs == 0 else [flag, *values]
    return shlex.join(words)


def as_setting(value: object) -> str:
    """A setting as a record holds it: of a path its last part, for a record keeps no path of its machine."""
    if isinstance(value, list):
        return ", ".join(map(as_setting, value))
    return value.name if isinstance(value, Path) else str(value)


def as_markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table, a column for each key."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---" if isinstance(rows[0].get(column), str) else "---:" for column in columns]]
    lines += [[as_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_cell(value: object) -> str:
    """A number to four significant digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
