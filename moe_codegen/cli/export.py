"""`moe-codegen export`: a mixture as Mixtral, Qwen2-MoE or Qwen3-MoE, for engines that know only those."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from moe_codegen.cli import console
from moe_codegen.reporting import bytes_bar, format_bytes
from moe_codegen.upcycle import export as write_exported


def export(
    source: Annotated[str, typer.Argument(help="Mixture: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to create for the exported mixture.")],
    max_shard_size: Annotated[str, typer.Option(help="Size of one weight file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the mixture SOURCE at OUT as a model that serving engines know.

    Of the Llama and Mistral families it is Mixtral then, of Qwen2 Qwen2-MoE, of Qwen3 Qwen3-MoE.
    """
    with bytes_bar(console.messages) as progress:
        report = write_exported(source, out, max_shard_size=max_shard_size, progress=progress)
    if as_json:
        record = {"out": str(report.out), "model_type": report.model_type}
        console.print_json({**record, "bytes": report.nbytes, "files": report.files})
        return
    written = f"[green]Wrote {escape(str(report.out))}[/green]: {format_bytes(report.nbytes)}, {report.model_type}"
    console.output.print(written, soft_wrap=True)
