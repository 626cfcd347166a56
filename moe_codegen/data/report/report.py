"""`report`: what every verb did to the data, from its manifests, as JSON, Markdown and pictures."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moe_codegen.data.filtering.inspect import inspect
from moe_codegen.data.passes.stage import Record, read_manifest
from moe_codegen.data.passes.tally import Tally
from moe_codegen.data.reading.sources import open_source
from moe_codegen.data.report.tables import tables_of
from moe_codegen.errors import OutputError


def write_report(
    source: str | Path, out: str | Path, *, pictures: bool = True, num_proc: int = 1, quiet: bool = True
) -> Record:
    """Write `report.json`, `report.md` and pictures about a folder of ours to `out`; returns what the JSON holds.

    `source` is any verb's output (its whole history is told), a folder of such outputs as `prepare` makes it, or other
    data, which is inspected first. Raises `OutputError` where `out` holds something that is no report.
    """
    out, name = Path(out), Path(source).name
    if out.exists() and any(not path.name.startswith("report") for path in out.iterdir()):
        raise OutputError(f"{out} holds other files than a report; give an empty or new folder")
    stages = list(_stages(str(source), num_proc, quiet))
    out.mkdir(parents=True, exist_ok=True)
    record: Record = {"source": name, "stages": stages}
    names: list[str] = []
    if pictures:
        from moe_codegen.data.report.figures import draw

        names = draw(stages, out)
    (out / "report.json").write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False))
    (out / "report.md").write_text("\n".join(_markdown(name, stages, names)))
    return record


def _stages(source: str, num_proc: int, quiet: bool) -> Iterator[Record]:
    """The manifests in order, without what only a resumed run needs."""
    inside = sorted(path for path in Path(source).iterdir() if path.is_dir()) if Path(source).is_dir() else []
    manifest = read_manifest(source)
    manifests = [manifest] if manifest else [m for m in map(read_manifest, inside) if m]
    if not manifests:
        with tempfile.TemporaryDirectory() as folder:
            manifests = [inspect(open_source(source), folder, num_proc=num_proc, quiet=quiet)]
    told: set[str] = set()
    for one in manifests:
        for stage in [*one["history"], one]:
            short = {key: value for key, value in stage.items() if key not in ("history", "shards", "units")}
            if (text := json.dumps(short, sort_keys=True)) not in told:
                told.add(text)
                yield short


def _markdown(name: str, stages: list[Record], pictures: list[str]) -> Iterator[str]:
    yield f"# Data report: {name}\n"
    for stage in stages:
        yield f"## {stage['verb']} of `{stage['source']}`\n"
        if "tally" in stage:
            tally = Tally(stage["tally"])
            kept, dropped = tally.total(kept=True)[0], tally.total(kept=False)[0]
            yield f"{kept:,} of {kept + dropped:,} files kept ({kept / max(kept + dropped, 1):.1%}).\n"
        for table in tables_of(stage, reasons_by_language=True):
            yield "| " + " | ".join(table.head) + " |"
            yield "|" + " --- |" * len(table.head)
            yield from ("| " + " | ".join(row) + " |" for row in table.rows)
            yield ""
    for picture in pictures:
        yield f"![{picture.removesuffix('.png')}]({picture})\n"
