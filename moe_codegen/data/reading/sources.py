"""Where rows come from: every source is a list of units, and a unit is read alone, in any process, as often as needed.

A unit is what one worker does at a time and what a resumed run does not repeat: some row groups of a Parquet file, a
byte range of a JSONL file, some files of some checkouts, one shard of a Hub dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from moe_codegen.data.reading.checkouts import checkout_units
from moe_codegen.data.reading.hub import hub_units
from moe_codegen.data.reading.jsonl import jsonl_units
from moe_codegen.data.reading.parquet import parquet_units
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.rows.batch import Batch
from moe_codegen.data.rows.schema import LAYOUTS, Layout
from moe_codegen.errors import ColumnError, SourceError
from moe_codegen.languages import LANGUAGES, canonical_language

UNIT_BYTES = 128 << 20  # of text, before compression
_JSONL = (".jsonl", ".jsonl.gz", ".json.gz", ".ndjson")
CHECKOUTS = "checkouts"  # the layout of a folder of repositories, told from the folder where it is not named
_ASIDE = {"dropped", ".work"}  # folders in which our own verbs keep what is no input


class Unit(Protocol):
    """A part of a source; picklable, and the same rows in the same order each time."""

    @property
    def name(self) -> str:
        """Unique within the source."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of text, about; 0 where unknown."""
        ...

    @property
    def layout(self) -> Layout:
        """Where its columns are read from."""
        ...

    def batches(self) -> Iterator[Batch]:
        """The rows, in batches of about `BATCH_BYTES`."""
        ...


@dataclass(frozen=True)
class Source:
    """A dataset as its units. `has_licenses` is false where no licence is known for any row."""

    name: str
    units: tuple[Unit, ...]
    schema: pa.Schema
    has_licenses: bool

    @property
    def nbytes(self) -> int:
        """Bytes of text, about; 0 where unknown."""
        return sum(unit.nbytes for unit in self.units)


def open_source(source: str | Path, settings: SourceSettings | None = None, unit_bytes: int = UNIT_BYTES) -> Source:
    """The units of a Parquet or JSONL file, a folder of them, a folder of checkouts, or a dataset on the Hub.

    A path that exists is local; anything else of the form `owner/name` is a Hub id. A folder with Parquet anywhere in
    it is read as tables, unless its sub-folders are git clones or the layout is `checkouts`.

    Raises `SourceError` where there is nothing to read, `ColumnError` where a column is missing, `GatedDatasetError`
    where the Hub wants a sign-in.
    """
    settings = settings or SourceSettings()
    path, layout = Path(source), _layout(settings)
    if not path.exists():
        if str(source).count("/") != 1 or str(source).startswith((".", "/")):
            raise SourceError(f"{source} does not exist, and is no Hub id of the form owner/name")
        units: list[Any] = list(hub_units(str(source), settings, layout))
    else:
        units = list(_local_units(path, layout, unit_bytes, settings.layout == CHECKOUTS))
    units = [replace(unit, layout=_with_language(unit, settings.language)) for unit in units]
    schemas = {tuple(unit.layout.schema.names): unit for unit in units}
    if len(schemas) > 1:
        one, two = list(schemas.values())[:2]
        raise ColumnError(f"{one.name} and {two.name} are of different columns; read them into folders of their own")
    layout = units[0].layout
    return Source(str(source), tuple(units), layout.schema, bool(layout.sources("licenses")))


def _local_units(path: Path, layout: Layout | None, unit_bytes: int, as_checkouts: bool) -> Iterator[Unit]:
    if path.is_file():
        return _file_units([path], path.parent, layout, unit_bytes)
    if as_checkouts or any(path.glob("*/.git")):
        return checkout_units(path, unit_bytes)
    files = [
        file for file in sorted(path.rglob("*")) if file.is_file() and not _ASIDE & set(file.relative_to(path).parts)
    ]
    tables = [file for file in files if file.suffix == ".parquet"]
    tables = tables or [file for file in files if file.name.endswith(_JSONL) and file.parent == path]
    if tables:
        return _file_units(tables, path, layout, unit_bytes)
    if not any(child.is_dir() for child in path.iterdir()):
        raise SourceError(f"{path} holds no .parquet or .jsonl file and no folder of a repository")
    return checkout_units(path, unit_bytes)


def _with_language(unit: Any, given: str) -> Layout:
    """The unit's layout with the language of rows that name none: as given, or as the file or its folder is called."""
    named = [part.partition(".")[0] for part in reversed(unit.name.partition("#")[0].split("/"))]
    told = (name for part in named if (name := canonical_language(part)) in LANGUAGES)
    is_table = not unit.layout.sources("language") and hasattr(unit, "path")
    return replace(unit.layout, language=given or (next(told, None) if is_table else None))


def _file_units(files: list[Path], root: Path, layout: Layout | None, unit_bytes: int) -> Iterator[Unit]:
    for file in files:
        if file.suffix == ".parquet":
            yield from parquet_units(file, root, layout, unit_bytes)
        elif file.name.endswith(_JSONL):
            yield from jsonl_units(file, root, layout, unit_bytes)
        else:
            raise SourceError(f"{file} is of no format that is read; expected .parquet or {', '.join(_JSONL)}")


def _layout(settings: SourceSettings) -> Layout | None:
    """The layout that the settings name, with the columns that they map; None leaves it to the columns."""
    if settings.layout and settings.layout not in (*LAYOUTS, CHECKOUTS):
        raise ColumnError(f"unknown layout `{settings.layout}`; the layouts are {', '.join(LAYOUTS)}, {CHECKOUTS}")
    named = LAYOUTS.get(settings.layout)
    if not settings.columns:
        return named
    mapped: dict[str, str | tuple[str, ...]] = dict(named.columns) if named else {}
    for pair in settings.columns:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ColumnError(f"--columns {pair} should be OURS=THEIRS, such as content=code")
        mapped[ours] = tuple(theirs.split("+")) if "+" in theirs else theirs
    return Layout(settings.layout or "mapped", mapped, named.carried if named else {})
