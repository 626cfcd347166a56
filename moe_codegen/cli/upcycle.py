"""`moe-codegen upcycle`: turn dense checkpoints into a mixture of experts."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from moe_codegen.cli import console
from moe_codegen.errors import ConfigError
from moe_codegen.reporting import bytes_bar, format_bytes, table
from moe_codegen.upcycle import UpcycleReport
from moe_codegen.upcycle import upcycle as convert
from moe_codegen.upcycle.options import RouterInit
from moe_codegen.upcycle.texts import read_router_data

Option = typer.Option


def upcycle(
    source: Annotated[str, typer.Argument(help="Dense checkpoint: a folder or a hub id, also ID@REVISION.")],
    out: Annotated[Path, typer.Argument(help="Folder to create for the mixture.")],
    experts: Annotated[
        list[str] | None, Option(help="NAME=PATH of a checkpoint tuned from SOURCE; once for each expert.")
    ] = None,
    num_experts: Annotated[int | None, Option(help="Experts in each layer. [default: 8, or one per --experts]")] = None,
    top_k: Annotated[int, Option(help="Experts that take each token.")] = 2,
    layers: Annotated[str, Option(help="Layers to convert: 'all', or such as 0,2,8-11.")] = "all",
    granularity: Annotated[int, Option(help="Cut each FFN into this many experts.")] = 1,
    shared_expert: Annotated[bool, Option(help="Keep the dense FFN as an expert for every token.")] = False,
    renormalise: Annotated[bool, Option(help="Make the chosen weights sum to one.")] = True,
    shared: Annotated[
        str, Option(help="Weights outside the experts: 'base', 'average', or NAME=WEIGHT,NAME=WEIGHT.")
    ] = "base",
    noise_std: Annotated[float, Option(help="Noise on each expert, relative to each tensor's RMS.")] = 0.0,
    drop_ratio: Annotated[float, Option(help="Share of each expert's hidden units to re-initialise.")] = 0.0,
    router: Annotated[RouterInit, Option(help="How the router starts.")] = "normal",
    router_std: Annotated[float, Option(help="Standard deviation of a random router.")] = 0.02,
    router_data: Annotated[
        Path | None, Option(help="Texts for each expert: JSONL, or a folder with a folder for each.")
    ] = None,
    dtype: Annotated[str | None, Option(help="float32, float16 or bfloat16. [default: the source's]")] = None,
    max_shard_size: Annotated[str, Option(help="Size of one weight file.")] = "2GB",
    seed: Annotated[int, Option(help="Of every random number.")] = 0,
    workers: Annotated[int | None, Option(help="Files written at once. [default: one per core, at most 4]")] = None,
    dry_run: Annotated[
        bool,
        Option("--dry-run", help="Check headers and print the plan; download no weights, write nothing to OUT."),
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print the plan and the result as JSON.")] = False,
) -> None:
    """Turn the dense checkpoint SOURCE, or several tuned from it, into a mixture of experts at OUT.

    A killed conversion goes on where it stopped when the same command is given again.
    """
    with bytes_bar(console.messages) as progress:
        report = convert(
            source,
            out,
            experts=_pairs(experts, "NAME=PATH") if experts else None,
            num_experts=num_experts,
            top_k=top_k,
            layers=layers,
            granularity=granularity,
            shared_expert=shared_expert,
            renormalise=renormalise,
            shared=parse_weights(shared) if "=" in shared else shared,
            noise_std=noise_std,
            drop_ratio=drop_ratio,
            router=router,
            router_std=router_std,
            router_data=read_router_data(router_data) if router_data else None,
            dtype=dtype,
            max_shard_size=max_shard_size,
            seed=seed,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        console.print_json(_as_json(report))
    else:
        _print(report, source)


def parse_weights(text: str) -> dict[str, float]:
    """`NAME=WEIGHT,NAME=WEIGHT` as a mapping; ConfigError for anything else."""
    pairs = _pairs(text.split(","), "NAME=WEIGHT")
    try:
        return {name: float(weight) for name, weight in pairs.items()}
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}; give NAME=WEIGHT,NAME=WEIGHT with numbers as weights") from error


def _pairs(texts: list[str], form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise ConfigError(f"{text!r} is not of the form {form}")
        if name in pairs:
            raise ConfigError(f"{name!r} is given twice: {pairs[name]} and {value}; give each expert a name of its own")
        pairs[name] = value
    return pairs


def _as_json(report: UpcycleReport) -> dict[str, Any]:
    plan = report.plan
    return {
        "out": str(report.out),
        "dry_run": report.dry_run,
        "parameters": plan.num_parameters,
        "bytes": plan.nbytes,
        "free_bytes": report.free_bytes,
        "memory_bytes": report.memory_bytes,
        "tensors": list(plan.records()),
        "files": report.files,
        "seconds": report.seconds,
        "warnings": report.warnings,
    }


def _print(report: UpcycleReport, source: str) -> None:
    plan = report.plan
    if report.dry_run:
        console.output.print(table(("tensor", "count", "how", "shape", "dtype", "size"), _summary(report)))
    files = f"{len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}"
    console.output.print(
        f"{plan.num_parameters:,} parameters, {format_bytes(plan.nbytes)} in {files}; "
        f"{format_bytes(report.free_bytes)} free on the disk, about {format_bytes(report.memory_bytes)} of memory"
    )
    for warning in report.warnings:
        console.output.print(f"[yellow]note:[/yellow] {escape(warning)}", soft_wrap=True)
    if report.dry_run:
        console.output.print("Nothing was written (--dry-run).")
        return
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items() if seconds >= 0.05)
    console.output.print(f"[green]Wrote {escape(str(report.out))}[/green] ({steps or 'at once'})", soft_wrap=True)
    command = shlex.join(["moe-codegen", "verify", source, str(report.out)])
    console.output.print(f"Check it with: {escape(command)}", soft_wrap=True)


def _summary(report: UpcycleReport) -> Iterator[tuple[Any, ...]]:
    """The plan with the layers of one kind of tensor counted together, named without the way to their layer."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for record in report.plan.records():
        pattern = re.sub(r"^.*?\.\d+\.", "*.", record["name"])
        shape = " x ".join(map(str, record["shape"]))
        groups.setdefault((pattern, record["how"], shape, record["dtype"]), []).append(record["bytes"])
    for (pattern, how, shape, dtype), sizes in groups.items():
        yield pattern, len(sizes), how, shape, dtype, format_bytes(sum(sizes))
