"""`moe-codegen inspect`: what a checkpoint is."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from moe_codegen.checkpoint import resolve_source
from moe_codegen.cli import console
from moe_codegen.modeling.parameters import PARTS, ParameterCount
from moe_codegen.reporting import format_bytes, format_count
from moe_codegen.upcycle.inspection import Inspection, Mixture, inspect_checkpoint
from moe_codegen_kernels import describe_cpu_path

DIGESTS_SHOWN = 4


def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Folders or hub ids; several are shown side by side."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON for each checkpoint.")] = False,
) -> None:
    """Say what a checkpoint is, dense or mixture, from its settings and headers alone, also those of a hub id."""
    inspections = [inspect_checkpoint(resolve_source(path, weights=False)) for path in paths]
    if as_json:
        for inspection in inspections:
            console.print_json(as_record(inspection))
    else:
        console.output.print(as_table(inspections))
        if any(inspection.mixture for inspection in inspections):
            console.output.print(f"Experts on this processor: {describe_cpu_path()}.", style="dim")


def as_record(inspection: Inspection) -> dict[str, Any]:
    """The inspection as one JSON object."""
    mixture, parameters = inspection.mixture, inspection.parameters
    return {
        "path": str(inspection.path),
        "kind": "mixture" if mixture else "dense",
        "family": inspection.family,
        "layout": inspection.layout,
        "num_layers": inspection.num_layers,
        "hidden_size": inspection.hidden_size,
        "ffn_width": inspection.ffn_width,
        "vocabulary": inspection.vocabulary,
        "positions": inspection.positions,
        "mixture": vars(mixture) if mixture else None,
        "parameters": {
            "total": parameters.total,
            "active": parameters.active,
            "parts": {part: {"total": total, "active": active} for part, (total, active) in parameters.parts.items()},
        },
        "bytes": inspection.nbytes,
        "dtypes": inspection.dtypes,
        "files": inspection.files,
        "provenance": inspection.provenance or None,
    }


def as_table(inspections: list[Inspection]) -> Table:
    """A row for each property that any of the checkpoints has, a column for each checkpoint."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", style="dim", no_wrap=True)
    for inspection in inspections:
        table.add_column(_short(inspection.path), overflow="fold", header_style="bold")
    for rows in SECTIONS:
        columns = [rows(inspection) for inspection in inspections]
        for label in columns[0]:
            cells = [column[label] for column in columns]
            if any(cells):
                table.add_row(label, *cells)
        table.add_section()
    return table


# Each section gives every checkpoint the same rows in the same order; an empty cell is what it has not got.
Rows = dict[str, str | Text]


def _shape(inspection: Inspection) -> Rows:
    mixture = inspection.mixture
    positions = inspection.positions
    return {
        "kind": Text("mixture of experts" if mixture else "dense", style="bold"),
        "family": inspection.family,
        "layout": f"from {inspection.layout}" if mixture and inspection.layout else inspection.layout or "",
        "layers": _layers(inspection),
        "experts": f"{mixture.num_experts}, top-{mixture.top_k}" if mixture else "",
        "expert names": ", ".join(mixture.expert_names or []) if mixture else "",
        "quantised": (mixture.quantisation or "") if mixture else "",
        "expert width": f"{mixture.expert_width:,}" if mixture else "",
        "granularity": str(mixture.granularity) if mixture and mixture.granularity > 1 else "",
        "shared expert": _shared_expert(mixture),
        "router": _router(mixture),
        "hidden size": f"{inspection.hidden_size:,}",
        "FFN width": f"{inspection.ffn_width:,}",
        "vocabulary": f"{inspection.vocabulary:,}",
        "positions": f"{positions:,}" if positions else "",
    }


def _size(inspection: Inspection) -> Rows:
    parameters = inspection.parameters
    dtypes = inspection.dtypes
    rows: Rows = {
        "parameters": Text(f"{parameters.total:,}", style="bold"),
        "active per token": _active(parameters),
    }
    for part in PARTS:
        total, active = parameters.parts.get(part, (0, 0))
        share = "" if total == active else f", {format_count(active)} active"
        rows[f"  {part}"] = f"{format_count(total)}{share}" if total else ""
    rows["bytes"] = format_bytes(inspection.nbytes)
    rows["dtype"] = (
        next(iter(dtypes))
        if len(dtypes) == 1
        else "\n".join(f"{dtype} {format_bytes(nbytes)}" for dtype, nbytes in dtypes.items())
    )
    rows["files"] = str(len(inspection.files))
    return rows


def _origin(inspection: Inspection) -> Rows:
    """What of `upcycle.json` a person wants to see; it may be of an older or newer release, so nothing is required."""
    record = inspection.provenance
    return {
        "source": _source(record.get("source")),
        "expert sources": "\n".join(f"{name}: {_source(source)}" for name, source in _items(record.get("experts"))),
        "options": ", ".join(f"{key}={value}" for key, value in _items(record.get("options")) if _worth_telling(value)),
        "versions": ", ".join(f"{key} {value}" for key, value in _items(record.get("versions"))),
        "SHA-256": _digests(record.get("files")),
    }


SECTIONS = (_shape, _size, _origin)


def _layers(inspection: Inspection) -> str:
    if inspection.mixture is None:
        return str(inspection.num_layers)
    sparse = inspection.mixture.sparse_layers
    if len(sparse) == inspection.num_layers:
        return f"{inspection.num_layers}, all sparse"
    return f"{inspection.num_layers}, sparse: {_ranges(sparse)}"


def _ranges(numbers: list[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _active(parameters: ParameterCount) -> str:
    share = "" if parameters.active == parameters.total else f" ({parameters.active / parameters.total:.0%})"
    return f"{parameters.active:,}{share}"


def _shared_expert(mixture: Mixture | None) -> str:
    if mixture is None or mixture.shared_expert_weight is None:
        return ""
    return f"weight {mixture.shared_expert_weight:g}"


def _router(mixture: Mixture | None) -> str:
    if mixture is None:
        return ""
    return f"{mixture.router}, {'' if mixture.norm_topk_prob else 'not '}renormalised"


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _worth_telling(value: Any) -> bool:
    """Whether an option asked for something: not nothing, and a seed of 0 is something."""
    return value is not None and value is not False and not (isinstance(value, float) and value == 0)


def _source(source: Any) -> str:
    if not isinstance(source, dict):
        return str(source or "")
    return "\n".join(line for line in (str(source.get("given") or ""), _digests(source.get("sha256"))) if line)


def _digests(files: Any) -> str:
    """The first digits, enough to compare by eye, of a few files; `--json` has them all."""
    lines = [f"{name} {_digest(entry)}" for name, entry in _items(files)]
    more = len(lines) - DIGESTS_SHOWN
    return "\n".join([*lines[:DIGESTS_SHOWN], f"and {more} more" if more > 0 else ""]).strip()


def _digest(entry: Any) -> str:
    digest = str(entry.get("sha256", "")) if isinstance(entry, dict) else str(entry)
    return f"{digest[:12]}…" if len(digest) > 12 else digest


def _short(path: Path) -> str:
    """The last two parts of a path, which is what tells checkpoints apart."""
    return "/".join(path.parts[-2:]) if len(path.parts) > 2 else str(path)
