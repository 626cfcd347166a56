"""`report`: what every verb did to the data, from its manifests, as JSON, Markdown and pictures."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moe_codegen.data.filtering.inspect import inspect
from moe_codegen.data.passes.stage import Record, read_manifest
from moe_codegen.data.passes.tables import markdown, stages_of
from moe_codegen.data.reading.sources import open_source
from moe_codegen.errors import OutputError
from moe_codegen.whole_file import writing


def write_report(
    source: str | Path,
    out: str | Path,
    *,
    manifests: list[Record] | None = None,
    pictures: bool = True,
    num_proc: int = 1,
    quiet: bool = True,
) -> Record:
    """Write `report.json`, `report.md` and pictures about a folder of ours to `out`; returns what the JSON holds.

    `source` is any verb's output (its whole history is told), a folder of such outputs as `prepare` makes it, or other
    data, which is inspected first. `manifests`, where given, are those told of, whatever else lies in `source`. Raises
    `OutputError` where `out` holds something that is no report, or cannot be written.
    """
    found = manifests_for(source, out)
    manifests = found if manifests is None else manifests
    if not manifests:
        with tempfile.TemporaryDirectory() as folder:
            manifests = [inspect(open_source(source), folder, num_proc=num_proc, quiet=quiet)]
    out, name, stages = Path(out), Path(source).absolute().name, stages_of(manifests)
    record: Record = {"source": name, "stages": stages}
    drawn: list[list[str]] = [[] for _ in stages]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if pictures:
            from moe_codegen.data.report.figures import draw

            drawn = draw(stages, out)
        (out / "report.json").write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False))
        (out / "report.md").write_text("\n".join(_markdown(name, stages, drawn)))
    return record


def manifests_for(source: str | Path, out: str | Path) -> list[Record]:
    """The manifests that a report of `source` tells of; none for data that is not ours, and has to be inspected first.

    Raises `OutputError` where `out` holds something that is no report.
    """
    out, folder = Path(out), Path(source)
    if out.is_dir() and any(not path.name.startswith("report") for path in out.iterdir()):
        raise OutputError(f"{out} holds other files than a report; give an empty or new folder")
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    own, *others = map(read_manifest, [folder, *inside])
    return [own] if own else [manifest for manifest in others if manifest]


def _markdown(name: str, stages: list[Record], drawn: list[list[str]]) -> Iterator[str]:
    yield f"# Data report: {name}\n"
    for stage, pictures in zip(stages, drawn, strict=True):
        yield from markdown([stage])
        for picture in pictures:
            yield f"![{picture.removesuffix('.png')}]({picture})\n"
