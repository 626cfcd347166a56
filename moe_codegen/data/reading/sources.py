"""Where rows come from: every source is a list of units, and a unit is read alone, in any process, as often as needed.

A unit is what one worker does at a time and what a resumed run does not repeat: some row groups of a Parquet file, a
byte range of a JSONL file, some files of some checkouts, one shard of a Hub dataset.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from moe_codegen.data.reading.checkouts import CheckoutUnit, checkout_units, is_source_code
from moe_codegen.data.reading.files import as_text, walk
from moe_codegen.data.reading.hub import HubUnit, hub_units
from moe_codegen.data.reading.jsonl import jsonl_units
from moe_codegen.data.reading.parquet import parquet_units
from moe_codegen.data.reading.settings import SourceSettings
from moe_codegen.data.reading.trial import first_rows
from moe_codegen.data.rows.batch import Batch
from moe_codegen.data.rows.schema import LAYOUTS, SCHEMA, Layout, LayoutFinder, find_layout
from moe_codegen.errors import ColumnError, SourceError
from moe_codegen.languages import LANGUAGES, canonical_language

UNIT_BYTES = 128 << 20  # of text, before compression
_JSONL = tuple(kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))
_TABLES = (".parquet", *(kind for kind in _JSONL if kind != ".json"))  # a .json may be anything
_UNREAD = re.compile(
    r"(?i)\.(?:arrow|feather|orc|avro|csv|tsv|(?:jsonl?|ndjson|parquet)\.(?:xz|bz2|lz4|zip|br|gz|zst))$"
)  # tables, too
CHECKOUTS = "checkouts"  # the layout of a folder of repositories, told from the folder where it is not named
# Folders in which our own verbs, git and the Hub's client keep what is no input.
_ASIDE = {"dropped", ".work", ".git", ".cache"}


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

    @property
    def identity(self) -> str:
        """A hash of what is read and how, wherever it lies and whenever it was written."""
        ...

    @property
    def modified(self) -> tuple[int, ...]:
        """When each of its files was last changed, in nanoseconds."""
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

    A path that exists is local; anything else of the form `owner/name` is a Hub id. A folder of tables without source
    code is read as tables; where it has both, the settings must say which is meant. Git clones with source code are
    read as checkouts unless the settings say otherwise.

    Raises `SourceError` where there is nothing to read, `ColumnError` where a column is missing, `GatedDatasetError`
    where the Hub wants a sign-in.
    """
    settings = settings or SourceSettings()
    path, find = Path(source), _finder(settings)
    units: list[Any]
    if path.exists():
        _refuse_hub_settings(path, settings)
        units = list(_local_units(path, settings, find, unit_bytes))
    else:
        if str(source).count("/") != 1 or str(source).startswith((".", "/")):
            raise SourceError(f"{as_text(path)} does not exist, and is no Hub id of the form owner/name")
        units = list(hub_units(str(source), settings, find))
    if not units:
        raise SourceError(f"{as_text(path)} holds no row")
    units = [replace(unit, layout=_with_language(unit, path, settings)) for unit in units]
    schemas = {tuple(unit.layout.schema.names): unit for unit in units}
    if len(schemas) > 1:
        one, two = list(schemas.values())[:2]
        raise ColumnError(f"{one.name} and {two.name} are of different columns; read them into folders of their own")
    has_licenses = any(unit.layout.sources("licenses") for unit in units)
    schema = units[0].layout.schema
    units = units if settings.limit is None else first_rows(units, settings.limit)
    return Source(str(source), tuple(units), schema, has_licenses)


def _refuse_hub_settings(path: Path, settings: SourceSettings) -> None:
    for name in ("config", "data_dir", "split", "revision"):
        if (value := getattr(settings, name)) != getattr(SourceSettings, name):
            raise SourceError(
                f"{name}={value} is for datasets of the Hub, and {as_text(path)} is here; leave it out and give the "
                "folder that is meant"
            )


def _local_units(path: Path, settings: SourceSettings, find: LayoutFinder, unit_bytes: int) -> Iterator[Unit]:
    if path.is_file():
        return _file_units([path], path.parent, find, unit_bytes)
    is_told = bool(settings.layout or settings.columns)
    clones = any(path.glob("*/.git")) and not is_told
    if settings.layout == CHECKOUTS or (clones and any(map(is_source_code, _names(path)))):
        return checkout_units(path, unit_bytes)
    files = [folder / name for folder, _, names in walk(path, _ASIDE, follow_links=True) for name in names]
    code = next((file for file in files if is_source_code(file.name)), None)
    tables = [file for file in files if file.name.endswith(_TABLES)]
    if not (tables or code or clones):
        tables = [file for file in files if file.name.endswith(".json")]  # beside others it describes them
    if tables and code and not is_told:
        raise SourceError(
            f"{as_text(path)} holds tables ({as_text(tables[0].relative_to(path))}) and source code "
            f"({as_text(code.relative_to(path))}); say which is meant: --layout usual or --layout {CHECKOUTS}"
        )
    if tables:
        unread = [file for file in files if _UNREAD.search(file.name) and not file.name.endswith(_TABLES)]
        return _file_units([*unread, *sorted(tables)], path, find, unit_bytes)
    if not code and not any(child.is_dir() for child in path.iterdir()):
        raise SourceError(f"{as_text(path)} holds no {' or '.join(_TABLES[:2])} file and no folder of a repository")
    return checkout_units(path, unit_bytes)


def _names(path: Path) -> Iterator[str]:
    return (name for _, _, names in walk(path, _ASIDE) for name in names)


def _with_language(unit: Any, path: Path, settings: SourceSettings) -> Layout:
    """The unit's layout with the language of rows that name none: as given, or as the file or its folder is called."""
    if settings.language or unit.layout.sources("language") or isinstance(unit, CheckoutUnit):
        return replace(unit.layout, language=settings.language or None)
    if isinstance(unit, HubUnit):
        where = settings.data_dir
    else:
        where = f"{(path if path.is_dir() else path.parent).resolve().name}/{unit.name.partition('#')[0]}"
    named = (canonical_language(part.partition(".")[0]) for part in reversed(where.split("/")))
    return replace(unit.layout, language=next((name for name in named if name in LANGUAGES), None))


def _file_units(files: list[Path], root: Path, find: LayoutFinder, unit_bytes: int) -> Iterator[Unit]:
    for file in files:
        if file.suffix == ".parquet":
            yield from parquet_units(file, root, find, unit_bytes)
        elif file.name.endswith((*_TABLES, ".json")):
            yield from jsonl_units(file, root, find, unit_bytes)
        else:
            raise SourceError(f"{as_text(file)} is of no format that is read; expected {', '.join(_TABLES)}, .json")


def _finder(settings: SourceSettings) -> LayoutFinder:
    """What finds a file's layout: the one that the settings name, with the columns that they map."""
    if settings.layout and settings.layout not in (*LAYOUTS, CHECKOUTS):
        raise ColumnError(f"unknown layout `{settings.layout}`; the layouts are {', '.join(LAYOUTS)}, {CHECKOUTS}")
    mapped: dict[str, str | tuple[str, ...]] = {}
    for pair in settings.columns:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ColumnError(f"--columns {pair} should be OURS=THEIRS, such as content=code")
        if ours not in SCHEMA.names:
            raise ColumnError(f"--columns {pair}: there is no column {ours}; ours are {', '.join(SCHEMA.names)}")
        mapped[ours] = tuple(theirs.split("+")) if "+" in theirs else theirs
    return partial(find_layout, name=settings.layout if settings.layout in LAYOUTS else "", mapped=mapped)
