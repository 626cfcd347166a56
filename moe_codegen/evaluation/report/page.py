"""From runs to a page: everything that is shown, and the two templates that show it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.report.figures import draw_failures, draw_heat_map, draw_values
from moe_codegen.evaluation.report.heat_maps import Routing, routing_of
from moe_codegen.evaluation.report.programs import Failures, WinsAndLosses, failures, order_kinds, wins_and_losses
from moe_codegen.evaluation.report.runs import PASSED, EvaluatedRun, read_runs
from moe_codegen.evaluation.report.tables import SideBySide, measure_tables, pass_at_k_table, syntax_table
from moe_codegen.evaluation.run_folder import writable
from moe_codegen.whole_file import write_whole


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    runs: list[EvaluatedRun]
    tables: list[SideBySide]
    failures: list[Failures]
    decided: list[WinsAndLosses]
    routing: list[Routing]

    @property
    def labels(self) -> list[str]:
        """The models' names, in the order of the runs."""
        return [run.label for run in self.runs]

    @property
    def title(self) -> str:
        """What the report is about."""
        first, *others = self.labels
        return f"{', '.join(others)} against {first}" if others else first

    @property
    def lead(self) -> str:
        """What was done to whom, in a sentence or two."""
        problems = sum(len(each.tallies) for each in self.runs[0].scores.values())
        files = sum(self.runs[0].measures.get("loss", {}).get("documents", {}).get("files", {}).values())
        parts = [f"{problems:,} problems to solve" if problems else "", f"{files:,} held-out files" if files else ""]
        models = f"{len(self.runs)} models" if len(self.runs) > 1 else "One model"
        lead = f"{models}, measured on {' and '.join(part for part in parts if part) or 'what is below'}."
        return f"{lead} Differences are from {self.labels[0]}, on the same data." if len(self.runs) > 1 else lead

    @property
    def sections(self) -> list[str]:
        """Titles of the sections with tables, in their order."""
        return list(dict.fromkeys(table.section for table in self.tables))

    @property
    def kinds(self) -> list[str]:
        """How programs ended anywhere, and first how many passed, be it none: its colour is that of success."""
        return order_kinds({PASSED} | {kind for each in self.failures for kind in each.counts})

    @property
    def version(self) -> str:
        """Of this package."""
        return version("moe-codegen")


def write_report(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write the page `out`, beside it the same as Markdown, and its pictures in a folder; returns what was written.

    Args:
        folders: of `evaluate run` or `evaluate measure`; the others are compared with the first.
        out: a file that ends in .html, written anew if it is there.

    Raises:
        ConfigError: no folder, or another ending.
        ResultError: a folder without results, or with damaged or incomplete ones.
    """
    out = Path(out)
    if out.suffix != ".html":
        raise ConfigError(f"{out} should end in .html; the Markdown is written beside it")
    if not folders:
        raise ConfigError("no run to report; give at least one folder of `moe-codegen evaluate`")
    with writable(out.parent):
        content = gather([Path(folder) for folder in folders])
        out.parent.mkdir(parents=True, exist_ok=True)
        markdown, pictures = out.with_suffix(".md"), out.with_name(f"{out.stem}-figures")
        figures = _draw(content, pictures)
        environment = _environment()
        page = environment.get_template("page.html.jinja").render(content=content)
        text = environment.get_template("page.md.jinja").render(content=content, figures=figures, folder=pictures.name)
        write_whole(markdown, text.encode())
        write_whole(out, page.encode())
    return [out, markdown, *(pictures / name for name in figures.values())]


def gather(folders: Sequence[Path]) -> Content:
    """Read the runs and compute what is shown of them."""
    runs = read_runs(folders)
    first, others = runs[0], runs[1:]
    tables = [pass_at_k_table(runs), syntax_table(runs), *measure_tables(runs)]
    return Content(
        runs=runs,
        tables=[table for table in tables if table.rows],
        failures=failures(runs),
        decided=[each for other in others for each in wins_and_losses(first, other)],
        routing=[routing for run in runs if (routing := routing_of(run))],
    )


def _draw(content: Content, folder: Path) -> dict[str, str]:
    """Draw every picture; returns what it shows -> its file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    for number, table in enumerate(content.tables, 1):
        names[table.title] = f"values-{number:02d}.png"
        draw_values(table, content.labels, folder / names[table.title])
    if content.failures:
        names["failures"] = "failures.png"
        draw_failures(content.failures, folder / names["failures"])
    for number, routing in enumerate(content.routing, 1):
        for heat_map, kind in zip(routing.maps, ("language", "kind"), strict=True):
            name = f"routing-{number:02d}-{kind}.png"
            names[f"{routing.label} {heat_map.title}"] = name
            draw_heat_map(heat_map, routing.label, folder / name)
    return names


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moe_codegen.evaluation.report", "."),
        # What models write is text: in HTML escaped, in Markdown fenced or in table cells without bars.
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.jinja",), default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": lambda value, percent: f"{100 * value:.1f}%" if percent else f"{value:.3f}",
        "signed": _signed,
        "settings": lambda record: list(_flat(record)),
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
        "fence": _fence,
        "diff_line": lambda line: f"{line.sign} {line.text}",
        "indent_line": lambda text: f"  {text}",
    }
    return environment


def _signed(value: float, percent: bool) -> str:
    """A difference with its sign, a real minus; of shares in points."""
    return (f"{100 * value:+.1f}" if percent else f"{value:+.3f}").replace("-", "\N{MINUS SIGN}")


def _flat(record: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of everything in a nested record; long lists of names as their length."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(record, list) and len(record) > 12:
        yield name, f"{len(record)} entries"
    else:
        yield name, ", ".join(map(str, record)) if isinstance(record, list | tuple) else str(record)


def _fence(text: str) -> str:
    """A fence of backticks that does not occur in `text`."""
    fence = "```"
    while fence in text:
        fence += "`"
    return fence
