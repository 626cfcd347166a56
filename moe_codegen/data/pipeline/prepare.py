"""`prepare`: all the verbs that a TOML file names, each into a folder of its own, in the order of `VERBS`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_codegen.data.packing.settings import PackSettings
from moe_codegen.data.passes.card import Splits, folder_splits, write_card
from moe_codegen.data.passes.stage import Record
from moe_codegen.data.pipeline.verbs import VERBS
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.sources import UNIT_BYTES, Source, open_source
from moe_codegen.data.report.report import write_report
from moe_codegen.data.sampling.split import TRAIN, VALIDATION
from moe_codegen.errors import ConfigError
from moe_codegen.settings import beside, read_toml, settings_from
from moe_codegen.whole_file import writing


@dataclass(frozen=True)
class Plan:
    """What `prepare` will do: where from, and the settings of each step in order."""

    source: str
    source_settings: SourceSettings
    steps: dict[str, Any]
    report: bool

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each step under OUT; `pack` has one of that name for each side of a split."""
        return {name: f"{number}-{name}" for number, name in enumerate(self.steps, 1)}


def read_plan(path: str | Path) -> Plan:
    """The plan in a TOML file: `[source]` with `path`, and a table for each step wanted, in any order.

    Paths in it are relative to the file. Raises `ConfigError` for what is unknown, missing or of another type.
    """
    path = Path(path)
    tables = read_toml(path)
    unknown = sorted(set(tables) - set(VERBS) - {"source", "report"})
    if unknown:
        raise ConfigError(f"unknown table [{unknown[0]}] in {path}; the tables are source, {', '.join(VERBS)}, report")
    for name in tables.keys() - {"report"}:
        if not isinstance(tables[name], dict):
            raise ConfigError(f"`{name}` in {path} should be a table, [{name}], found {tables[name]!r}")
    source = dict(tables.get("source", {}))
    if "path" not in source:
        raise ConfigError(f"{path} does not say what to read; add [source] with path = ...")
    where = str(source.pop("path"))
    if "/" not in where or (path.parent / where).exists():  # a dataset's id has an owner
        where = str(path.parent / where)
    steps: dict[str, Any] = {
        name: beside(settings_from(verb.settings, tables[name], f"[{name}] of {path}"), path.parent)
        for name, verb in VERBS.items()
        if name in tables
    }
    return Plan(where, settings_from(SourceSettings, source, f"[source] of {path}"), steps, "report" in tables)


def check_plan(plan: Plan) -> None:
    """Raises for what a later step could not use: a benchmark that is not there, a tokenizer without sentinels."""
    for name, settings in plan.steps.items():
        if name != "pack" or settings.tokenizer:
            VERBS[name].check(settings)
        elif "tokenizer" not in plan.steps:
            raise ConfigError("[pack] needs a tokenizer: say tokenizer = FOLDER in it, or add a table [tokenizer]")


def prepare(
    plan: Plan, out: str | Path, *, num_proc: int = 1, quiet: bool = True, unit_bytes: int = UNIT_BYTES
) -> dict[str, Record]:
    """Run the plan; returns the manifests by folder. Killed and run again, it goes on where it was.

    After `split`, the tokenizer is trained on the training side and both sides are packed; the mixture and
    fill-in-the-middle are for training alone. A `pack` without tokenizer uses the one made here. What a later step
    would refuse is refused at once. The dataset card of `out` has a configuration for each step; the one loaded where
    none is named is the last that is text.
    """
    check_plan(plan)
    out = Path(out)
    data: Path | None = None  # what the next step reads
    tokenizer = ""
    done: dict[str, Record] = {}
    texts: dict[str, Splits] = {}  # what the card tells of
    sequences: dict[str, Splits] = {}

    def run(name: str, into: str, source: Source, settings: Any) -> Path:
        done[into] = VERBS[name].run(source, out / into, settings, num_proc=num_proc, quiet=quiet)
        return out / into

    for name, settings in plan.steps.items():
        source = open_source(data or plan.source, None if data else plan.source_settings, unit_bytes)
        into = plan.folders[name]
        if name == "tokenizer":
            tokenizer = str(run(name, into, source, settings))
        elif name == "pack":
            settings = settings if settings.tokenizer else replace(settings, tokenizer=tokenizer)
            sides = {side: data.parent / side for side in (TRAIN, VALIDATION)} if data and "split" in plan.steps else {}
            for side, folder in sides.items():
                its_settings = settings if side == TRAIN else _as_it_is(settings)
                run(name, f"{into}-{side}", open_source(folder, unit_bytes=unit_bytes), its_settings)
            if not sides:
                run(name, into, source, settings)
            sequences[into] = {side: f"{into}-{side}/*.parquet" for side in sides} or {TRAIN: f"{into}/*.parquet"}
        else:
            data = run(name, into, source, settings)
            data = data / TRAIN if name == "split" else data
            texts = {into: folder_splits(done[into], into), **texts}
    if described := next(iter(texts | sequences), None):
        others = [manifest for into, manifest in done.items() if into != described]
        with writing(out):
            write_card(out, texts | sequences, [done[described], *others])
    if plan.report:
        write_report(out, out / "report", manifests=list(done.values()))
    return done


def _as_it_is(settings: PackSettings) -> PackSettings:
    """For the validation side: each of its documents, once, in its own order."""
    return replace(settings, weights=(), temperature=1.0, tokens=None, fim_rate=0.0)
