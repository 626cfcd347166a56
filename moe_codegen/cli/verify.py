"""`moe-codegen verify`: is a mixture whole, and does it still compute what its dense source did?"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from moe_codegen.cli import console
from moe_codegen.reporting import bytes_bar, table
from moe_codegen.upcycle import VerifyReport
from moe_codegen.upcycle import verify as compare
from moe_codegen.upcycle.verify import TOLERANCE


def verify(
    source: Annotated[str, typer.Argument(help="The dense checkpoint: a folder or a hub id.")],
    moe: Annotated[str, typer.Argument(help="The mixture made from it.")],
    text: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with the text to run both on. [default: built in]"),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest relative error that counts as equal.")] = TOLERANCE,
    max_tokens: Annotated[int, typer.Option(help="How much of the text to use.")] = 128,
    files: Annotated[bool, typer.Option(help="Re-read every weight file and compare its SHA-256.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare the mixture MOE with its dense SOURCE: every file's SHA-256, and every layer's output.

    Exit status 1 if a file is damaged or an output departs.
    """
    with bytes_bar(console.messages) as progress:
        report = compare(
            source,
            moe,
            text.read_text(encoding="utf-8", errors="replace") if text else None,
            tolerance=tolerance,
            max_tokens=max_tokens,
            files=files,
            progress=progress,
        )
    if as_json:
        verdict = {"passed": report.passed, "first_departure": report.first_departure}
        # JSON has no infinity: an error that is none is null.
        rows = [row | {"relative_error": _finite(row["relative_error"])} for row in asdict(report)["rows"]]
        console.print_json({**verdict, **asdict(report), "rows": rows})
    else:
        _print(report)
    raise typer.Exit(0 if report.passed else 1)


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _print(report: VerifyReport) -> None:
    rows = [
        (row.stage, f"{row.relative_error:.1e}", " ".join(f"{share:4.0%}" for share in row.expert_load or []))
        for row in report.rows
    ]
    if rows:
        console.output.print(table(("output of", "relative error", "share of tokens each expert took"), rows))
    for name in report.damaged:
        console.output.print(f"[red]damaged:[/red] {escape(name)} is not what was written; convert or fetch it again")
    if report.checked_files and not report.damaged:
        console.output.print(f"Weight files with the SHA-256 they were written with: {report.checked_files}.")
    if report.not_run:
        console.output.print(f"What it computes was not compared: {escape(report.not_run)}.")
    elif report.passed:
        console.output.print(f"[green]Equal[/green] within {report.tolerance:g} at every stage.")
    elif report.first_departure:
        console.output.print(
            f"[red]Departs[/red] first at {report.first_departure} (tolerance {report.tolerance:g}). Expected where "
            "experts were diversified or come from different checkpoints; otherwise the conversion is wrong.",
        )
