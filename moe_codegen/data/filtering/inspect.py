"""`inspect`: what a source holds, without changing or dropping anything."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from moe_codegen.data.filtering.histograms import Histograms
from moe_codegen.data.filtering.measures import measure
from moe_codegen.data.passes.progress import advance
from moe_codegen.data.passes.stage import Record, Stage, run_stage
from moe_codegen.data.passes.tally import KEPT, Tally, merged
from moe_codegen.data.reading.sources import Source, Unit
from moe_codegen.data.rows.batch import split_sound


@dataclass(frozen=True)
class InspectSettings:
    """`inspect` has nothing to set."""


def inspect(
    source: Source, out: str | Path, settings: InspectSettings | None = None, *, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Count and measure every file of `source`; `out` gets nothing but the manifest, which is returned.

    Rows without readable text are counted under what is wrong with them.
    """
    return run_stage("inspect", source, out, settings or InspectSettings(), _inspect, num_proc=num_proc, quiet=quiet)


def _inspect(stage: Stage) -> tuple[Record, list[Record]]:
    records = stage.map("measures", inspect_unit)
    histograms, licenses, repositories = Histograms(), Counter[str](), set[str]()
    for record in records:
        histograms.merge(record["histograms"])
        licenses.update(record["licenses"])
        repositories.update(record["repositories"])
    return {
        "tally": merged(records).record(),
        "histograms": histograms.record(),
        "licenses": dict(licenses.most_common()),
        "repositories": len(repositories),
        "columns": stage.source.schema.names,
    }, []


def inspect_unit(unit: Unit, number: int, folder: Path) -> Record:
    """The counts and measures of one unit."""
    tally, histograms, licenses, repositories = Tally(), Histograms(), Counter[str](), set[str]()
    for batch in unit.batches():
        sound, _, dropped = split_sound(batch)
        for one in dropped:
            tally.add(one.reason, one.language, 1, one.size)
        if sound.rows.num_rows:
            languages = sound.rows.column("language").to_pylist()
            measures = measure(sound.rows.column("content"), languages)
            histograms.add(measures)
            for language, size in zip(languages, measures.size.tolist(), strict=True):
                tally.add(KEPT, language, 1, size)
            licenses.update(license_name(names) for names in sound.rows.column("licenses").to_pylist())
            repositories.update(filter(None, sound.rows.column("repo").to_pylist()))
        advance(batch.rows.num_rows, batch.rows.column("content").nbytes, sound.rows.num_rows)
    return {
        "tally": tally.record(),
        "histograms": histograms.record(),
        "licenses": dict(licenses),
        "repositories": sorted(repositories),
    }


def license_name(licenses: list[str | None] | None) -> str:
    """A file's licences as one name: in order, or `unknown`."""
    return ", ".join(filter(None, licenses or ())) or "unknown"
