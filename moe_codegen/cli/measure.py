"""`moe-codegen evaluate measure`: loss, completion and routing of a model on held-out files."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from moe_codegen.cli import console
from moe_codegen.cli.flags import flags_of, keyword, settings_of
from moe_codegen.cli.generate import Dtype
from moe_codegen.evaluation.measure import MeasureSettings
from moe_codegen.evaluation.measure import measure as measure_model
from moe_codegen.evaluation.summary import Estimate, estimates
from moe_codegen.generation import load_model
from moe_codegen.reporting import counts_bar, table


def measure(**given: Any) -> None:
    """Measure a model on held-out files: loss by language, line completion, syntax, and the routing of a mixture.

    Two models measured with the same DATA and settings can be compared; `moe-codegen report` sets them side by side.
    """
    settings = settings_of(MeasureSettings, given)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = getattr(torch, given["dtype"]) if given["dtype"] else None
    with console.messages.status(f"loading {given['model']}"):
        model, tokenizer = load_model(given["model"], dtype, given["device"])
    with counts_bar(Console(stderr=True)) as progress:
        records = measure_model(
            given["model"], model, tokenizer, given["data"], given["out"], settings, progress=progress
        )
    if given["json_"]:
        console.print_json({name: [vars(one) for one in estimates(record)] for name, record in records.items()})
        return
    for record in records.values():
        console.output.print(_table(estimates(record)))
    console.output.print(f"written to {given['out']}")


def _table(found: list[Estimate]) -> Table:
    rows = [(one.measure, one.language, one.text, one.files, one.repositories) for one in found]
    return table(("measure", "language", "mean, 95% interval", "files", "repositories"), rows)


_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "model": (str, "Dense or mixture checkpoint: a folder or hub id."),
    "data": (str, "Held-out files: what `data split` wrote to OUT/validation, or a folder of repositories."),
    "out": (Path, "Folder for the results: new, or an evaluation run's of the same model."),
}
measure.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(
            keyword(name, Annotated[kind, typer.Argument(metavar=name.upper(), help=help, show_default=False)])
            for name, (kind, help) in _ARGUMENTS.items()
        ),
        *flags_of(MeasureSettings),
        keyword(
            "dtype",
            Annotated[
                Dtype | None, typer.Option(metavar="DTYPE", help="float32, bfloat16 or float16; else the checkpoint's.")
            ],
            None,
        ),
        keyword("device", Annotated[str | None, typer.Option(help="Such as cuda:1; else the accelerator.")], None),
        keyword(
            "json_", Annotated[bool, typer.Option("--json", help="Print the estimates as one line of JSON.")], False
        ),
    ]
)
