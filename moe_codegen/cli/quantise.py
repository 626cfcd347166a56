"""`moe-codegen quantise`: a mixture with its experts in 8 or 4 bits."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from moe_codegen.cli import console
from moe_codegen.reporting import bytes_bar, format_bytes
from moe_codegen.upcycle import quantise as write_quantised


def quantise(
    source: Annotated[str, typer.Argument(help="Mixture: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to create for the quantised mixture.")],
    bits: Annotated[int, typer.Option(help="8 or 4.")] = 8,
    group_size: Annotated[
        int | None, typer.Option(help="Weights of a row that share a scale. [default: the row; 32 with 4 bits]")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Size of one weight file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the mixture SOURCE with its experts' weights in 8 or 4 bits at OUT; the rest stays as it is.

    A killed run goes on where it stopped when the same command is given again.
    """
    with bytes_bar(console.messages) as progress:
        report = write_quantised(
            source, out, bits=bits, group_size=group_size, max_shard_size=max_shard_size, progress=progress
        )
    if as_json:
        sizes = {"source_bytes": report.source_bytes, "bytes": report.nbytes}
        record = {"out": str(report.out), "bits": bits, "group_size": report.quantisation.group_size}
        console.print_json({**record, **sizes, "files": report.files})
        return
    sizes_told = f"{format_bytes(report.nbytes)}, from {format_bytes(report.source_bytes)}"
    console.output.print(
        f"[green]Wrote {escape(str(report.out))}[/green]: {sizes_told} ({report.quantisation})", soft_wrap=True
    )
