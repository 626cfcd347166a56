"""`clean`: every file through the filters."""

import warnings
from collections import Counter
from pathlib import Path

from moe_codegen.data.filtering.filters import CleanSettings, judge
from moe_codegen.data.filtering.histograms import Histograms
from moe_codegen.data.filtering.inspect import license_name
from moe_codegen.data.passes.output import UnitOutput
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import OUTPUT, Record, Stage, run_stage
from moe_codegen.data.passes.tally import merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.errors import ConfigError
from moe_codegen.languages import LANGUAGES, canonical_language
from moe_codegen.settings import nearest


def clean(
    source: Source, out: str | Path, settings: CleanSettings | None = None, *, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Write the files of `source` that pass every filter to `out`; returns the manifest.

    The manifest counts what was dropped and why, and holds histograms of what the filters measured. Raises
    `ConfigError` for a language that no file of the source can be in.
    """
    settings = settings or CleanSettings()
    _check_languages(source, settings)
    if settings.permissive_only and not source.has_licenses:
        warnings.warn(f"{source.name} has no column of licences: the licence filter is off", stacklevel=2)
    return run_stage("clean", source, out, settings, clean_body, num_proc=num_proc, quiet=quiet)


def _check_languages(source: Source, settings: CleanSettings) -> None:
    """Languages told from file names are among ours; only a column of languages may hold others."""
    if any(unit.layout.sources("language") for unit in source.units):
        return
    possible = {*LANGUAGES, *(unit.layout.language for unit in source.units if unit.layout.language)}
    for name in map(canonical_language, settings.languages):
        if name not in possible:
            raise ConfigError(f"no file is known to be in `{name}`{nearest(name, sorted(possible), 'languages')}")


def clean_body(stage: Stage) -> tuple[Record, list[Record]]:
    """The one pass of `clean`."""
    records = stage.map(OUTPUT, clean_unit, stage.settings, stage.source.has_licenses)
    histograms, licenses = Histograms(), Counter[str]()
    for record in records:
        histograms.merge(record["histograms"])
        licenses.update(record["licenses"])
    tally = merged(records)
    seen = {language for some in tally.record().values() for language in some}
    for name in sorted({*map(canonical_language, stage.settings.languages)} - seen):
        told = f"no file of {stage.source.name} is in `{name}`{nearest(name, sorted(seen), 'languages')}"
        warnings.warn(told, stacklevel=2)
    summary = {"tally": tally.record(), "histograms": histograms.record(), "licenses": dict(licenses.most_common())}
    return summary, records


def clean_unit(unit: Unit, number: int, folder: Path, settings: CleanSettings, licensed: bool) -> Record:
    """Filter one unit into its shard under `folder`."""
    output = UnitOutput(folder, number, unit.layout.schema)
    histograms, licenses = Histograms(), Counter[str]()
    for batch in unit.batches():
        verdict = judge(batch, settings, licensed)
        output.keep(verdict.kept)
        output.drop(verdict.dropped)
        if verdict.measures is not None:
            histograms.add(verdict.measures)
        licenses.update(license_name(names) for names in verdict.kept.column("licenses").to_pylist())
        kept = verdict.kept.num_rows
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, kept)
    return {**output.close(), "histograms": histograms.record(), "licenses": dict(licenses)}
