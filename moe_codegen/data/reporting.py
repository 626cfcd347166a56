"""`report`: what every verb did to the data, from its manifests, as JSON, Markdown and pictures."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moe_codegen.data.inspection import inspect
from moe_codegen.data.sources import open_source
from moe_codegen.data.stage import Record, read_manifest
from moe_codegen.data.tally import KEPT, Tally
from moe_codegen.errors import OutputError, SourceError


def report(source: str | Path, out: str | Path, *, pictures: bool = True) -> Record:
    """Write `report.json`, `report.md` and pictures about a folder of ours to `out`; returns what the JSON holds.

    `source` is any verb's output (its whole history is told), a folder of such outputs as `prepare` makes it, or other
    data, which is inspected first. Raises `OutputError` where `out` holds something that is no report.
    """
    source, out = Path(source), Path(out)
    if out.exists() and any(not path.name.startswith("report") for path in out.iterdir()):
        raise OutputError(f"{out} holds other files than a report; give an empty or new folder")
    stages = list(_stages(source))
    out.mkdir(parents=True, exist_ok=True)
    record: Record = {"source": source.name, "stages": stages}
    names: list[str] = []
    if pictures:
        from moe_codegen.data.figures import draw

        names = draw(stages, out)
    (out / "report.json").write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False))
    (out / "report.md").write_text("\n".join(_markdown(source.name, stages, names)))
    return record


def _stages(source: Path) -> Iterator[Record]:
    """The manifests in order, without what only a resumed run needs."""
    manifest = read_manifest(source)
    manifests = [manifest] if manifest else [m for m in map(read_manifest, sorted(_folders(source))) if m]
    if not manifests:
        with tempfile.TemporaryDirectory() as folder:
            manifests = [inspect(open_source(source), folder)]
    told: set[str] = set()
    for one in manifests:
        for stage in [*one["history"], one]:
            short = {key: value for key, value in stage.items() if key not in ("history", "shards", "units")}
            if (text := json.dumps(short, sort_keys=True)) not in told:
                told.add(text)
                yield short


def _folders(source: Path) -> list[Path]:
    if not source.is_dir():
        raise SourceError(f"{source} is no folder")
    return [path for path in source.iterdir() if path.is_dir()]


def _markdown(name: str, stages: list[Record], pictures: list[str]) -> Iterator[str]:
    yield f"# Data report: {name}\n"
    for stage in stages:
        yield f"## {stage['verb']} of `{stage['source']}`\n"
        yield from _tally_table(stage["tally"]) if "tally" in stage else ()
        if "samples" in stage:
            yield from _sample_table(stage["samples"], stage["settings"]["confidence"])
        if stage.get("licenses"):
            shown = list(stage["licenses"].items())[:15]
            yield from _table(("licence", "files"), [(license_id, f"{files:,}") for license_id, files in shown])
        if "cluster_sizes" in stage:
            sizes = stage["cluster_sizes"].items()
            yield from _table(("cluster size", "clusters"), [(size, f"{count:,}") for size, count in sizes])
        rest = {key: stage[key] for key in _ACCOUNTS if key in stage}
        yield from _table(("", ""), [(key.replace("_", " "), _short(value)) for key, value in rest.items()])
    for picture in pictures:
        yield f"![{picture.removesuffix('.png')}]({picture})\n"


_ACCOUNTS = (
    "split_rows",
    "characters_per_token",
    "sequences",
    "tokens",
    "padding_fraction",
    "documents",
    "documents_cut",
    "tokens_by_language",
    "patterns",
)


def _tally_table(counts: dict) -> Iterator[str]:
    tally = Tally(counts)
    languages = sorted({language for some in counts.values() for language in some})
    rows = []
    for reason in [KEPT, *(reason for reason in sorted(counts) if reason != KEPT)]:
        mine = counts.get(reason, {})
        files, nbytes = (sum(entry[i] for entry in mine.values()) for i in range(2))
        cells = [f"{mine[lang][0]:,} ({mine[lang][1] / 1e6:,.2f} MB)" if lang in mine else "" for lang in languages]
        rows.append((reason.replace("_", " "), f"{files:,}", f"{nbytes / 1e6:,.2f}", *cells))
    kept, dropped = tally.total(kept=True)[0], tally.total(kept=False)[0]
    yield f"{kept:,} of {kept + dropped:,} files kept ({kept / max(kept + dropped, 1):.1%}).\n"
    yield from _table(("", "files", "MB", *languages), rows)


def _sample_table(samples: dict, confidence: float) -> Iterator[str]:
    rows = []
    for language, account in samples.items():
        half = account.get("half_width")
        interval = f"{account['mean']:,.0f} ± {half:,.0f}" if half is not None else "unknown"
        numbers = (account["population"], account["repositories"], account["files"])
        moments = (f"{account['variation']:.2f}", f"{account['rho']:.2f}", f"{account['design_effect']:.2f}")
        rows.append((language, *(f"{number:,}" for number in numbers), *moments, interval))
    head = ("language", "files", "repositories", "sampled", "variation", "rho", "design effect")
    yield from _table((*head, f"mean bytes, {confidence:.0%}"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        yield "| " + " | ".join(head) + " |"
        yield "|" + " --- |" * len(head)
        yield from ("| " + " | ".join(row) + " |" for row in rows)
        yield ""


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
