"""What manifests say, as tables of text: for the command line, the report and the dataset card."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from moe_codegen.data.passes.tally import KEPT, Counts, Record, Tally

# What a manifest may hold beside its tables, in the order in which it is told.
_FIGURES = (
    "columns",
    "repositories",
    "split_rows",
    "benchmark_commits",
    "patterns",
    "problems_found",
    "characters_per_token",
    "sequences",
    "documents",
    "documents_cut",
    "tokens",
    "tokens_by_language",
    "unused_tokens",
    "padding_fraction",
)
_SHOWN = 15  # names of a table that could have thousands


@dataclass(frozen=True)
class TextTable:
    """A head and rows of as many cells; the first cell of a row names it."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def stages_of(manifests: Iterable[Record]) -> list[Record]:
    """What the manifests tell of, in order and each stage once, without what only a resumed run needs."""
    stages = (stage for one in manifests for stage in [*one["history"], one])
    told = [{key: value for key, value in one.items() if key not in ("history", "shards", "units")} for one in stages]
    return list({json.dumps(stage, sort_keys=True): stage for stage in told}.values())


def markdown(stages: Iterable[Record]) -> Iterator[str]:
    """A section a stage, line by line: what it kept and dropped, and its tables."""
    for stage in stages:
        yield f"## {stage['verb']} of `{stage['source']}`\n"
        if "tally" in stage:
            tally = Tally(stage["tally"])
            kept, dropped = tally.total(kept=True)[0], tally.total(kept=False)[0]
            yield f"{kept:,} of {kept + dropped:,} files kept ({kept / max(kept + dropped, 1):.1%}).\n"
        for table in tables_of(stage, reasons_by_language=True):
            head, *rows = (f"| {' | '.join(map(_in_markdown, cells))} |" for cells in (table.head, *table.rows))
            yield from (head, "|" + " --- |" * len(table.head), *rows, "")


def _in_markdown(cell: str) -> str:
    """A cell that ends neither itself nor its row; the names of licences and problems may hold anything."""
    return " ".join(cell.replace("|", "\\|").split())


def tables_of(manifest: Record, *, reasons_by_language: bool = False) -> Iterator[TextTable]:
    """The tables that have rows: what was kept and dropped, samples, licences, clusters, and single figures.

    `reasons_by_language` gives each language a column, in files and megabytes, instead of a table of its own.
    """
    made: list[TextTable] = []
    if counts := manifest.get("tally"):
        made += [_reasons_by_language(counts)] if reasons_by_language else [_reasons(counts), _languages(counts)]
    if samples := manifest.get("samples"):
        made.append(_samples(samples, manifest["settings"]["confidence"]))
    made.append(TextTable(("licence", "files"), _most(manifest.get("licenses", {}))))
    made.append(TextTable(("files in the cluster", "clusters"), _cluster_sizes(manifest.get("cluster_sizes", {}))))
    problems = manifest.get("problems_found", {})
    made.append(TextTable(("problem found", "files"), _most(problems)))
    told = manifest | ({"problems_found": len(problems)} if "problems_found" in manifest else {})
    made.append(TextTable(("", ""), [(key.replace("_", " "), as_text(told[key])) for key in _FIGURES if key in told]))
    yield from (table for table in made if table.rows)


def _most(counts: dict[str, int]) -> list[tuple[str, str]]:
    """The names of the greatest counts, in the order of these, and the sum of the others."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    rows = [(name, f"{counts[name]:,}") for name in names[:_SHOWN]]
    others = [counts[name] for name in names[_SHOWN:]]
    return rows + ([(f"{len(others):,} others", f"{sum(others):,}")] if others else [])


def _cluster_sizes(clusters: dict[str, int]) -> list[tuple[str, str]]:
    """How many clusters are of each size, of sizes up to each power of two together: large ones are all different."""
    counts: dict[int, int] = {}
    for size, count in clusters.items():
        power = (int(size) - 1).bit_length()
        counts[power] = counts.get(power, 0) + count
    labels = {power: f"{2**power:,}" if power < 2 else f"{2 ** (power - 1) + 1:,} to {2**power:,}" for power in counts}
    return [(labels[power], f"{counts[power]:,}") for power in sorted(counts)]


def _reasons(counts: Counts) -> TextTable:
    rows = [(_spelled(reason), *_amount(list(counts[reason].values()))) for reason in _in_order(counts)]
    return TextTable(("", "files", "MB"), rows)


def _languages(counts: Counts) -> TextTable:
    """Of each language what was kept, and what was dropped for any reason."""
    nothing = [0, 0]
    rows = []
    for language in sorted({language for some in counts.values() for language in some}):
        kept = counts.get(KEPT, {}).get(language, nothing)
        dropped = [some.get(language, nothing) for reason, some in counts.items() if reason != KEPT]
        rows.append((language, *_amount([kept]), *_amount(dropped)))
    return TextTable(("language", "files kept", "MB", "files dropped", "MB"), rows)


def _reasons_by_language(counts: Counts) -> TextTable:
    languages = sorted({language for some in counts.values() for language in some})
    rows = []
    for reason in _in_order(counts):
        mine = counts[reason]
        cells = ["{} ({} MB)".format(*_amount([mine[name]])) if name in mine else "" for name in languages]
        rows.append((_spelled(reason), *_amount(list(mine.values())), *cells))
    return TextTable(("", "files", "MB", *languages), rows)


def _samples(samples: Record, confidence: float) -> TextTable:
    rows = []
    for language, account in samples.items():
        half = account.get("half_width")
        interval = f"{account['mean']:,.0f} ± {half:,.0f}" if half is not None else "unknown"
        numbers = (account["population"], account["repositories"], account["files"])
        moments = (f"{account['variation']:.2f}", f"{account['rho']:.2f}", f"{account['design_effect']:.2f}")
        rows.append((language, *(f"{number:,}" for number in numbers), *moments, interval))
    head = ("language", "files", "repos", "sampled", "sd / mean", "rho", "design effect")
    return TextTable((*head, f"mean bytes, {confidence:.0%}"), rows)


def _in_order(counts: Counts) -> list[str]:
    return sorted(counts, key=lambda reason: (reason != KEPT, reason))


def _spelled(reason: str) -> str:
    return reason.replace("_", " ")


def _amount(entries: list[list[int]]) -> tuple[str, str]:
    """Files, and megabytes, of all the entries."""
    files, nbytes = (sum(entry[place] for entry in entries) for place in range(2))
    return f"{files:,}", f"{nbytes / 1e6:,.2f}"


def as_text(value: object) -> str:
    """A setting or a figure as a cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(as_text, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value) or "none"
