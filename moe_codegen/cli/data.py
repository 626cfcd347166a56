"""`moe-codegen data VERB IN OUT`: the flags of a verb are the fields of its settings."""

import inspect
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.utils import disable_progress_bars

from moe_codegen.cli import console
from moe_codegen.cli.flags import flags_of, keyword, settings_of
from moe_codegen.data.filtering.inspect import InspectSettings
from moe_codegen.data.filtering.inspect import inspect as inspect_source
from moe_codegen.data.passes.stage import Record
from moe_codegen.data.passes.tables import as_text, stages_of, tables_of
from moe_codegen.data.pipeline.corpus import build_corpus, read_corpus_settings
from moe_codegen.data.pipeline.prepare import check_plan, prepare, read_plan
from moe_codegen.data.pipeline.publish import plan_publication, publish
from moe_codegen.data.pipeline.verbs import VERBS, Verb
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import Source, open_source
from moe_codegen.data.report.report import manifests_for, write_report
from moe_codegen.reporting import table
from moe_codegen.settings import as_record

app = typer.Typer(
    name="data", help="Code data: from a dataset or repositories to training batches.", no_args_is_help=True
)

SourceArgument = Annotated[
    str, typer.Argument(metavar="IN", help="Folder of shards or repositories, a file, or a Hub id.", show_default=False)
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder, or a started run.")]
NumProc = Annotated[int, typer.Option(min=1, help="Worker processes; the output is the same for any number.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")]
_DRY = "(dry run: nothing is written)"


def _add(name: str, verb: Verb) -> None:
    """Register the verb `name` with the flags of its settings, of the source, and those that all verbs have."""

    def command(**given: Any) -> None:
        settings: Any = settings_of(verb.settings, given)
        source_settings = settings_of(SourceSettings, given)
        source = open_source(given["source"], source_settings)
        verb.check(settings)
        if given["dry_run"]:
            about = _about(source) | as_record(settings)
            _show_settings(f"{name} {source.name} -> {given['out']} {_DRY}", about)
            return
        manifest = verb.run(source, given["out"], settings, num_proc=given["num_proc"], quiet=given["quiet"])
        _show(manifest, given["out"], given["json_"])

    common = {"num_proc": (NumProc, 1), "dry_run": (DryRun, False), "quiet": (Quiet, False), "json_": (AsJson, False)}
    parameters = [
        keyword("source", SourceArgument),
        keyword("out", OutArgument),
        *(flag for some in (verb.settings, SourceSettings) for flag in flags_of(some)),
        *(keyword(flag, kind, default) for flag, (kind, default) in common.items()),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(name, help=verb.summary)(command)


_INSPECT = Verb("Count and measure what IN holds; OUT gets the figures alone.", InspectSettings, inspect_source)
for _name, _verb in {"inspect": _INSPECT, **VERBS}.items():
    _add(_name, _verb)


@app.command("report")
def report_command(
    source: SourceArgument,
    out: OutArgument,
    pictures: Annotated[bool, typer.Option(help="Draw histograms, drops, clusters and samples.")] = True,
    num_proc: NumProc = 1,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write report.json, report.md and pictures: what was kept and dropped, why, and how large the samples are."""
    if dry_run:
        manifests = manifests_for(source, out)
        stages = [f"{stage['verb']} of {stage['source']}" for stage in stages_of(manifests)]
        about = {"stages": stages or f"inspect of {open_source(source).name}", "pictures": pictures}
        _show_settings(f"report {source} -> {out} {_DRY}", about)
        return
    record = write_report(source, out, pictures=pictures, num_proc=num_proc, quiet=quiet)
    if as_json:
        console.print_json(record)
    else:
        _show_report(out)


@app.command("prepare")
def prepare_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="What to read and which verbs to run.")],
    out: OutArgument,
    num_proc: NumProc = 1,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run every verb that a TOML file names, each into a folder of its own under OUT."""
    read = read_plan(plan)
    check_plan(read)
    if dry_run:
        source = open_source(read.source, read.source_settings)
        _show_settings(f"prepare {source.name} -> {out} {_DRY}", _about(source))
        for verb, settings in read.steps.items():
            _show_settings(f"{verb} -> {out / read.folders[verb]}", as_record(settings))
        return
    manifests = prepare(read, out, num_proc=num_proc, quiet=quiet)
    if as_json:
        console.print_json(manifests)
        return
    for folder, manifest in manifests.items():
        _show(manifest, out / folder, as_json=False)
    if read.report:
        _show_report(out / "report")


@app.command("publish")
def publish_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="OUT of a verb or of prepare, with its README.md.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Dataset on the Hub; made where there is none.")],
    public: Annotated[bool, typer.Option("--public", help="Make it public; else only its owner sees it.")] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Upload the shards and the dataset card of IN to the Hub, as a private dataset unless told otherwise."""
    plan = plan_publication(source, repo_id, private=not public)
    if quiet:
        disable_progress_bars()
    url = None if dry_run else publish(plan)
    if as_json:
        console.print_json(asdict(plan) | {"folder": str(source), "url": url})
        return
    kind = "private" if plan.private else "public"
    where = url or "dry run: nothing is uploaded"
    console.output.print(f"publish {source} -> {repo_id} ({where})", soft_wrap=True, markup=False)
    about = {"visibility": kind, "files": f"{len(plan.files):,}", "size": f"{plan.nbytes / 1e6:,.1f} MB"}
    console.output.print(table(("", ""), about.items()))


@app.command("corpus")
def corpus_command(
    packages: Annotated[Path, typer.Argument(metavar="PACKAGES.toml", help="Names of packages: pypi, npm, debian.")],
    out: OutArgument,
    megabytes: Annotated[float | None, typer.Option(help="MB of text a language. [default: 50]")] = None,
    package_share: Annotated[
        float | None, typer.Option(help="Largest share of it from one package. [default: 0.2]")
    ] = None,
    num_proc: NumProc = 1,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Build a LANGUAGE.parquet for each language from source packages, fetched with their own clients."""
    settings = read_corpus_settings(packages)
    if megabytes is not None:
        settings = replace(settings, megabytes=megabytes)
    if package_share is not None:
        settings = replace(settings, package_share=package_share)
    if dry_run:
        _show_settings(f"corpus {packages} -> {out} {_DRY}", as_record(settings))
        return
    _show(build_corpus(settings, out, num_proc=num_proc, quiet=quiet), out, as_json)


def _about(source: Source) -> Record:
    """What is known of a source before it is read."""
    text = f"{source.nbytes / 1e6:,.1f} MB" if source.nbytes else "unknown"
    return {"units": len(source.units), "text": text, "columns": source.schema.names}


def _show_settings(title: str, about: Record) -> None:
    console.output.print(title, soft_wrap=True, markup=False)
    console.output.print(table(("", ""), [(name, as_text(value)) for name, value in about.items()]))


def _show_report(folder: Path) -> None:
    console.output.print(f"report written to {folder / 'report.md'}", soft_wrap=True, markup=False)


def _show(manifest: Record, out: Path, as_json: bool) -> None:
    if as_json:
        console.print_json(manifest)
        return
    console.output.print(f"{manifest['verb']} -> {out}", soft_wrap=True, markup=False, style="bold")
    for each in tables_of(manifest):
        console.output.print(table(each.head, each.rows))
