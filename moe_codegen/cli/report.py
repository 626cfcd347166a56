"""`moe-codegen report`: evaluated models side by side, as a page and as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

from moe_codegen.cli import console
from moe_codegen.errors import MoECodegenError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Of each model its folder: OUT/NAME of `evaluate run`, OUT of `evaluate measure`.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write; Markdown and pictures come beside it.")] = Path(
        "report.html"
    ),
) -> None:
    """Set evaluated models side by side in one HTML page and in Markdown; the others are compared with the first.

    Shown is what the folders hold: pass@k, loss, completion, how programs failed, which problems which model solves
    and the programs of both, the routing of mixtures, and every setting and hash.
    """
    try:
        from moe_codegen.evaluation.report import write_report
    except ModuleNotFoundError as missing:
        raise MoECodegenError(f"{missing.name} is missing: pip install 'moe-codegen[evaluate]'") from missing
    with console.messages.status("writing the report"):
        page, markdown, *pictures = write_report(runs, out)
    console.output.print(f"{page}\n{markdown}, with {len(pictures)} pictures", soft_wrap=True, markup=False)
