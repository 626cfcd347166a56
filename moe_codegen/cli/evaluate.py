"""`moe-codegen evaluate VERB`: completions, what becomes of them, and what that says of a model."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging

from moe_codegen.cli import console
from moe_codegen.cli.evaluation_output import (
    comparison_record,
    kinds_record,
    model_record,
    print_comparisons,
    print_estimates,
    print_kinds,
    print_scores,
    print_speed,
    run_record,
    score_record,
)
from moe_codegen.cli.flags import flags_of, keyword, settings_of
from moe_codegen.errors import ConfigError, MoECodegenError, ResultError
from moe_codegen.evaluation import (
    ExecutionSettings,
    MeasureSettings,
    ModelSettings,
    ProblemSettings,
    RunSettings,
    SamplingSettings,
    execute,
    generate,
    score_folder,
)
from moe_codegen.evaluation.codebleu import folder_codebleu, read_references
from moe_codegen.evaluation.comparison import compare_folders
from moe_codegen.evaluation.run_folder import language_folders
from moe_codegen.evaluation.sandbox import WARNING
from moe_codegen.evaluation.scores import identify
from moe_codegen.reporting import count_bar, table

app = typer.Typer(
    name="evaluate", help="Run what models write, measure them on held-out files, compare them.", no_args_is_help=True
)

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="[NAME=]MODEL", help="Dense or mixture: a folder or hub id; NAME for tables."),
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, or a started run.")]
DirArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A run, or a folder with MultiPL-E's files.")]
Ks = Annotated[list[int] | None, typer.Option("--k", help="pass@k for this k; may be given again.", min=1)]
K = Annotated[int, typer.Option("--k", help="Compare pass@k for this k.", min=1)]
Partial = Annotated[bool, typer.Option("--partial", help="Score what is there of an incomplete folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON instead of tables.")]


def _command(verb: str, *settings_classes: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as `verb`; it is given one instance of each settings class, made of that verb's flags."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[len(settings_classes) :]

        def command(**given: Any) -> None:
            settings: list[Any] = [settings_of(some, given) for some in settings_classes]
            function(*settings, **{parameter.name: given[parameter.name] for parameter in own})

        flags = [flag for some in settings_classes for flag in flags_of(some)]
        arguments = [keyword(parameter.name, parameter.annotation, parameter.default) for parameter in own]
        command.__signature__ = inspect.Signature([*arguments, *flags])  # type: ignore[attr-defined]
        app.command(verb, help=inspect.getdoc(function))(command)
        return function

    return register


@_command("run", RunSettings)
def run_command(
    settings: RunSettings,
    models: Annotated[
        list[str], typer.Argument(metavar="[NAME=]MODEL...", help="The first is what the others are compared with.")
    ],
    out: OutArgument,
    as_json: AsJson = False,
) -> None:
    """Evaluate models side by side, from programs to the report; a killed run goes on where it was.

    Each completes the problems, and its programs run in a sandbox; with --held-out it is measured on files, too.
    """
    try:
        from moe_codegen.evaluation.run import run
    except ModuleNotFoundError as missing:
        raise MoECodegenError(f"{missing.name} is missing: pip install 'moe-codegen[evaluate]'") from missing
    _quiet_libraries()
    _warn(settings.execution)
    with count_bar(console.messages) as progress:
        evaluation = run(_named(models), out, settings, on_progress=progress)
    if as_json:
        console.print_json(
            {
                "models": {each.name: model_record(each) for each in evaluation.models},
                "report": str(evaluation.report[0]),
            }
        )
        return
    for each in evaluation.models:
        console.output.print(each.name, style="bold", markup=False)
        print_scores(each.scores)
        print_kinds(each.programs.counts)
        print_speed(each.programs)
        print_estimates(each.estimates)
    first, *others = evaluation.models
    for other in others:
        console.output.print(f"A: {first.name}, B: {other.name}", style="bold", markup=False)
        print_comparisons(other.comparisons, 1)
        print_estimates(other.differences)
    console.output.print(str(evaluation.report[0]), soft_wrap=True, markup=False)


@_command("generate", ProblemSettings, SamplingSettings, ModelSettings)
def generate_command(
    problems: ProblemSettings,
    sampling: SamplingSettings,
    model_settings: ModelSettings,
    model: ModelArgument,
    out: OutArgument,
    as_json: AsJson = False,
) -> None:
    """Only write the completions, as MultiPL-E's files; needs no sandbox and no compiler."""
    _quiet_libraries()
    name, model = _name_and_source(model)
    with count_bar(console.messages) as progress:
        report = generate(
            model, out, problems, sampling, model_settings, name=name, execute=False, on_progress=progress
        )
    if as_json:
        console.print_json(run_record(report))
        return
    for folder in report.folders:
        console.output.print(str(folder), soft_wrap=True, markup=False)
    print_speed(report)


@_command("execute", ExecutionSettings)
def execute_command(execution: ExecutionSettings, folder: DirArgument, as_json: AsJson = False) -> None:
    """Run the programs of a folder of completions, and write MultiPL-E's result files beside them."""
    _warn(execution)
    with count_bar(console.messages) as progress:
        counts = execute(folder, execution, progress)
    if as_json:
        console.print_json({str(each): kinds_record(kinds) for each, kinds in counts.items()})
        return
    print_kinds(counts)


@_command("pass-at-k")
def pass_at_k_command(folder: DirArgument, k: Ks = None, partial: Partial = False, as_json: AsJson = False) -> None:
    """Print pass@k of a folder of results, with 95% intervals over problems; raw, and over problems that can pass."""
    scores = [score_folder(each, k or (), partial=partial) for each in language_folders(folder)]
    if as_json:
        console.print_json({"scores": [score_record(each) for each in scores]})
        return
    print_scores(scores)


@_command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="DIR_A", help="A run, or a folder with MultiPL-E's files.")],
    second: Annotated[Path, typer.Argument(metavar="DIR_B", help="The same of another model.")],
    k: K = 1,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models problem by problem: B - A, its interval, its p-value, the smallest detectable difference."""
    comparisons = compare_folders(first, second, k, partial=partial)
    if as_json:
        console.print_json({name: comparison_record(each) for name, each in comparisons.items()})
        return
    print_comparisons(comparisons, k)


@_command("measure", MeasureSettings, ModelSettings)
def measure_command(
    settings: MeasureSettings,
    model_settings: ModelSettings,
    model: ModelArgument,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Held-out files: OUT/validation of `data split`, or repositories.")
    ],
    out: OutArgument,
    as_json: AsJson = False,
) -> None:
    """Measure a model on held-out files: loss by language, line completion, syntax, and a mixture's routing."""
    try:
        from moe_codegen.evaluation.held_out.estimates import estimates
        from moe_codegen.evaluation.held_out.measures import measure
    except ModuleNotFoundError as missing:
        raise MoECodegenError(f"{missing.name} is missing: pip install 'moe-codegen[evaluate]'") from missing
    _quiet_libraries()
    name, model = _name_and_source(model)
    with count_bar(console.messages) as progress:
        records = measure(model, data, out, settings, model_settings, name=name, on_progress=progress)
    found = [each for record in records.values() for each in estimates(record)]
    if as_json:
        console.print_json({"estimates": [dataclasses.asdict(each) for each in found]})
        return
    print_estimates(found)


@_command("codebleu")
def codebleu_command(
    folder: DirArgument,
    references: Annotated[
        Path,
        typer.Argument(
            metavar="REFERENCES", exists=True, dir_okay=False, help="JSON lines: name, language, completion."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """How alike completions are to right ones, by CodeBLEU: a similarity, which a wrong program can have, too.

    Problems without a reference are left out and counted.
    """
    right = read_references(references)
    found = {}
    for each in language_folders(folder):
        language = identify(each)[1]
        of_language = {name: text for (spoken, name), text in right.items() if spoken == language}
        found[each.name] = folder_codebleu(each, of_language)
    if all(mean is None for mean, _ in found.values()):
        raise ResultError(f"{references} has a reference for no problem of {folder}; language and name must be theirs")
    nothing = {"value": None, "low": None, "high": None, "clusters": 0}
    records = {
        name: {**nothing, **(dataclasses.asdict(mean) if mean else {}), "without_reference": left_out}
        for name, (mean, left_out) in found.items()
    }
    if as_json:
        console.print_json(records)
        return
    rows = [
        [
            name,
            "-" if each["value"] is None else f"{each['value']:.3f}",
            "-" if each["low"] is None else f"{each['low']:.3f} to {each['high']:.3f}",
            each["clusters"],
            each["without_reference"],
        ]
        for name, each in records.items()
    ]
    console.output.print(table(["folder", "CodeBLEU", "95%", "problems", "no reference"], rows))


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name -> model. Raises `ConfigError` for a name that two of them have."""
    named: dict[str, str] = {}
    for name, source in map(_name_and_source, models):
        if name in named:
            raise ConfigError(f"two models are called {name}; give one a name of its own: NAME={source}")
        named[name] = source
    return named


def _name_and_source(text: str) -> tuple[str, str]:
    """Of [NAME=]MODEL; a folder whose own name has a `=` is itself."""
    name, equals, source = text.partition("=")
    # Made absolute, a folder that is named as `.` or `..` has a name.
    return (name, source) if equals and not Path(text).exists() else (Path(os.path.abspath(text)).name, text)


def _quiet_libraries() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _warn(execution: ExecutionSettings) -> None:
    if execution.sandbox == "none":
        console.messages.print(f"[bold red]warning:[/bold red] {WARNING}", soft_wrap=True)
