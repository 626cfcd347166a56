"""The command line: one file per verb, each a typed function whose arguments are its flags."""

import sys

import typer
from rich.console import Console

from moe_codegen.cli import data
from moe_codegen.cli.extract import extract
from moe_codegen.cli.upcycle import upcycle
from moe_codegen.cli.verify import verify
from moe_codegen.errors import MoECodegenError

app = typer.Typer(
    name="moe-codegen",
    help="Turn dense code language models into sparse mixtures of experts, and run them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


for verb in (upcycle, extract, verify):
    app.command()(verb)
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command line; an error of ours is one message on standard error and exit status 1."""
    try:
        app()
    except MoECodegenError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
