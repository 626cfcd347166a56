"""`moe-codegen train dense | expert | mix RUN.toml OUT`: flags override the run file."""

import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import transformers
import typer
from rich.markup import escape

from moe_codegen.cli import console
from moe_codegen.cli.flags import flags_of, keyword, values_of
from moe_codegen.metrics.intervals import too_few
from moe_codegen.reporting import table
from moe_codegen.training import read_run, train
from moe_codegen.training.parallel import merge_checkpoint
from moe_codegen.training.progress import TrainingBar
from moe_codegen.training.run import VERBS
from moe_codegen.training.settings import TrainSettings

app = typer.Typer(name="train", help="Train experts, the mixture of them, and their dense rival.", no_args_is_help=True)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN.toml", help="Settings; a flag overrides its line.")]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, or a run that was stopped.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def _add(verb: str, settings_class: type[TrainSettings]) -> None:
    def command(**given: Any) -> None:
        import datasets  # slow to import, and no other verb needs it

        settings = read_run(settings_class, given["run"], values_of(settings_class, given))
        transformers.logging.set_verbosity_error()
        # One bar is enough: theirs, of loading and of saving, would come before and through it.
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started it speaks for all
        with TrainingBar(console.messages) as bar:
            summary = train(settings, given["out"], callbacks=[bar], warn=_warn if is_first else _say_nothing)
        if not is_first:
            return
        if given["json_"]:
            console.print_json(summary)
        else:
            _show(summary, given["out"])

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            keyword("run", RunArgument),
            keyword("out", OutArgument),
            *flags_of(settings_class, overriding=True),
            keyword("json_", AsJson, False),
        ]
    )
    app.command(verb, help=inspect.getdoc(settings_class))(command)


for _verb, _settings_class in VERBS.items():
    _add(_verb, _settings_class)


@app.command()
def merge(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="OUT/checkpoints/checkpoint-N of a run.")],
    out: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder to create.")],
) -> None:
    """Write the model of a checkpoint whose weights several processes shared as one folder, which every tool loads."""
    merge_checkpoint(checkpoint, out)
    console.output.print(f"Wrote {out}", markup=False)


def _say_nothing(message: str) -> None:
    pass


def _warn(message: str) -> None:
    console.messages.print(f"[yellow]warning:[/yellow] {escape(message)}", soft_wrap=True)


def _show(summary: dict[str, Any], out: Path) -> None:
    console.output.print(
        f"{summary['tokens']:,} tokens in {summary['steps']:,} steps, {summary['training_flops']:.3g} training FLOPs"
    )
    rows = [
        (name, f"{found['value']:.4f}", _interval(found), found["clusters"])
        for name, found in summary["validation"].items()
    ]
    if rows:
        console.output.print(table(("validation", "nats/token", "95% interval", "repositories"), rows))
    console.output.print(f"Wrote {out}", markup=False)


def _interval(found: dict[str, Any]) -> str:
    return too_few(found["clusters"]) if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
