"""The command line: one file per verb, each a typed function whose arguments are its flags."""

import sys
import warnings

import typer
from rich.console import Console
from rich.markup import escape

from moe_codegen.cli import demo, extract, generate, inspect, tune, upcycle, verify
from moe_codegen.cli.console import show_warning
from moe_codegen.errors import MoECodegenError

app = typer.Typer(
    name="moe-codegen",
    help="Turn dense code language models into sparse mixtures of experts, and run them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


for verb in (
    upcycle.upcycle,
    extract.extract,
    verify.verify,
    inspect.inspect,
    generate.generate,
    demo.demo,
    tune.tune,
):
    app.command()(verb)

try:
    from moe_codegen.cli.data import app as data_app
except ModuleNotFoundError as missing:
    needed = missing.name

    @app.command("data", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def data() -> None:
        """Code data: from a dataset or repositories to training batches (needs the extra `data`)."""
        raise MoECodegenError(f"{needed} is missing, which the data verbs need: pip install 'moe-codegen[data]'")

else:
    app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; a warning or an error of ours is one message on standard error, an error exit status 1."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            app()
    except MoECodegenError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
