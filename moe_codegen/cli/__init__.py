"""The command line: one file per verb, each a typed function whose arguments are its flags."""

import importlib
import os
import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer
from rich.markup import escape

from moe_codegen.cli import demo, export, extract, generate, inspect, quantise, report, tune, upcycle, verify
from moe_codegen.cli.console import messages, show_warning
from moe_codegen.errors import MoECodegenError

TRAINING = "Train and evaluate"

app = typer.Typer(
    name="moe-codegen",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(" ".join(f"{name} {metadata.version(name)}" for name in ("moe-codegen", "torch", "transformers")))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Turn dense code language models into sparse mixtures of experts, and run them."""


def _add_verbs(name: str, extra: str, summary: str) -> None:
    """The verbs of `cli/NAME.py`; where what they need is not installed, a command that says what to install."""
    try:
        app.add_typer(importlib.import_module(f"moe_codegen.cli.{name}").app, name=name, rich_help_panel=TRAINING)
    except ModuleNotFoundError as missing:
        message = f"{missing.name} is missing, which the {name} verbs need: pip install 'moe-codegen[{extra}]'"

        @app.command(
            name,
            rich_help_panel=TRAINING,
            help=f"{summary} (needs the extra `{extra}`).",
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )
        def refuse() -> None:
            raise MoECodegenError(message)


for verb in (upcycle.upcycle, verify.verify, inspect.inspect, extract.extract, export.export, quantise.quantise):
    app.command(rich_help_panel="Convert")(verb)
app.command(rich_help_panel="Run")(generate.generate)
app.command(rich_help_panel="Run")(tune.tune)
app.command(rich_help_panel="Run")(demo.demo)
_add_verbs("data", "data", "Code data: from a dataset or repositories to training batches")
_add_verbs("train", "train", "Train experts, the mixture of them, and their dense rival")
_add_verbs("evaluate", "evaluate", "Run what models write, measure them on held-out files, compare them")
app.command(rich_help_panel=TRAINING)(report.report)


def main() -> None:
    """Run the command line; a warning or an error of ours is one message on standard error, an error exit status 1."""
    if sys.stdout is None:  # the caller has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as standard error does: no traceback
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            app()
    except MoECodegenError as error:
        messages.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
