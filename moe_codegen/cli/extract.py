"""`moe-codegen extract`: one expert, or a merge of them, back to a dense checkpoint."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from moe_codegen.cli import console
from moe_codegen.cli.upcycle import parse_weights
from moe_codegen.reporting import bytes_bar, format_bytes
from moe_codegen.upcycle import extract as take_out


def extract(
    source: Annotated[str, typer.Argument(help="Mixture: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to create for the dense checkpoint.")],
    expert: Annotated[str | None, typer.Option(help="Name or number of the expert. [default: the mean of all]")] = None,
    weights: Annotated[str | None, typer.Option(help="A merge: NAME=WEIGHT,NAME=WEIGHT.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Size of one weight file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write one expert of the mixture SOURCE, or a weighted merge, as a dense checkpoint at OUT.

    The checkpoint has the layout and the configuration of the mixture's own dense source.
    """
    with bytes_bar(console.messages) as progress:
        merge = parse_weights(weights) if weights else None
        report = take_out(source, out, expert=expert, weights=merge, max_shard_size=max_shard_size, progress=progress)
    if as_json:
        record = {"out": str(report.out), "layout": report.layout, "weights": report.weights}
        console.print_json({**record, "bytes": report.nbytes, "files": report.files})
        return
    merged = ", ".join(f"{name} {weight:.3g}" for name, weight in report.weights.items())
    size = format_bytes(report.nbytes)
    console.output.print(
        f"[green]Wrote {escape(str(report.out))}[/green]: {size} in the layout {report.layout}", soft_wrap=True
    )
    console.output.print(f"Experts: {escape(merged)}", soft_wrap=True)
