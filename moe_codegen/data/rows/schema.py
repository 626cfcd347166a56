"""The columns of a row, and how other datasets' columns map to them.

A row is one file. `SCHEMA` is what every verb writes; a `Layout` says which columns of a source it is read from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from moe_codegen.errors import ColumnError

SCHEMA = pa.schema(
    [
        pa.field("hexsha", pa.string()),  # the source's own hash, or the 128-bit XXH3 of `content`
        pa.field("repo", pa.string()),
        pa.field("path", pa.string()),
        pa.field("language", pa.string()),  # lower case, as in `languages.LANGUAGES`
        pa.field("licenses", pa.list_(pa.string())),  # SPDX ids; null where nothing is known
        pa.field("stars", pa.int64()),
        pa.field("size", pa.int64()),  # bytes
        pa.field("avg_line_length", pa.float64()),  # characters
        pa.field("max_line_length", pa.int64()),  # characters
        pa.field("alphanum_fraction", pa.float64()),  # of the characters
        pa.field("content", pa.string()),
    ]
)

MEASURED = ("size", "avg_line_length", "max_line_length", "alphanum_fraction")  # by the filters, whatever a source says


Columns = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Layout:
    """Where each of our columns is found in a source: of several, licences in all, others in the first that is there.

    `carried` names columns of the source that are passed on unchanged, with their types; `language` is that of the rows
    that name none.
    """

    name: str
    columns: Columns
    carried: Mapping[str, pa.DataType] = field(default_factory=dict)
    language: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """`SCHEMA` followed by the carried columns."""
        return pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in self.carried.items())])

    def sources(self, column: str) -> tuple[str, ...]:
        """The source columns that `column` is read from, in order; empty where it is not mapped."""
        found = self.columns.get(column, ())
        return (found,) if isinstance(found, str) else tuple(found)

    def projection(self, present: Sequence[str]) -> list[str]:
        """Those of the `present` source columns that reading needs."""
        wanted = {name for column in self.columns for name in self.sources(column)} | set(self.carried)
        return [name for name in present if name in wanted]

    def of_present(self, present: Sequence[str]) -> "Layout":
        """This layout without the columns that are not there."""
        found = {column: tuple(name for name in self.sources(column) if name in present) for column in self.columns}
        return replace(self, columns={column: names for column, names in found.items() if names})

    def of_uneven_rows(self) -> "Layout":
        """This layout with the usual names of the columns that it lacks, for rows each with keys of its own."""
        return replace(self, columns={**LAYOUTS["usual"].columns, **self.columns})


def _the_stack() -> Layout:
    """The Stack v1.0 to v1.2 and its deduplicated edition: three sets of repository columns.

    A file is there because any of its repositories is permissive, so the three lists of licences are joined.
    """
    columns: dict[str, str | tuple[str, ...]] = {
        "hexsha": "hexsha",
        "repo": "max_stars_repo_name",
        "path": "max_stars_repo_path",
        "language": "lang",
        "licenses": tuple(f"max_{kind}_repo_licenses" for kind in ("stars", "issues", "forks")),
        "stars": "max_stars_count",
        "content": "content",
    }
    carried: dict[str, pa.DataType] = {"ext": pa.string(), "max_stars_repo_head_hexsha": pa.string()}
    for kind in ("stars", "issues", "forks"):
        if kind != "stars":
            carried |= {f"max_{kind}_repo_{part}": pa.string() for part in ("path", "name", "head_hexsha")}
            carried[f"max_{kind}_count"] = pa.int64()
        carried |= {f"max_{kind}_repo_{kind}_event_{end}_datetime": pa.string() for end in ("min", "max")}
    return Layout("the-stack", columns, carried)


# The names that columns have in our own files, The Stack's small edition and second version, StarCoderData,
# CodeParrot's datasets and others.
_USUAL: Columns = {name: name for name in SCHEMA.names} | {
    "repo": ("repo", "repo_name", "repository_name", "max_stars_repo_name"),
    "path": ("path", "max_stars_repo_path"),
    "language": ("language", "lang"),
    "licenses": ("licenses", "license", "detected_licenses"),
    "stars": ("stars", "max_stars_count"),
    "content": ("content", "code"),
}
LAYOUTS = {layout.name: layout for layout in (Layout("usual", _USUAL), _the_stack())}
_OF_THE_STACK = {"max_stars_repo_name", "hexsha", "content"}  # columns that only The Stack has together


LayoutFinder = Callable[[Sequence[str], str], Layout]  # the layout of a file, by its columns and its name


def find_layout(present: Sequence[str], origin: str, name: str = "", mapped: Columns | None = None) -> Layout:
    """The layout of that name, else the one whose columns are `present` in `origin`; `mapped` goes before its columns.

    Columns that The Stack carries stay where all others have our names, so that they survive every verb. Raises
    `ColumnError` where no column holds the text, or a mapped one is not there.
    """
    mapped = mapped or {}
    layout = LAYOUTS[name or ("the-stack" if set(present) >= _OF_THE_STACK else "usual")]
    if layout.name == "usual":
        carried = {column: kind for column, kind in LAYOUTS["the-stack"].carried.items() if column in present}
        layout = replace(layout, carried=carried)
    asked = replace(layout, columns={**layout.columns, **mapped})
    for column in mapped:
        if missing := [source for source in asked.sources(column) if source not in present]:
            raise ColumnError(
                f"missing column `{missing[0]}` for `{column}` in {origin}; found {_listed(present)}. "
                f"Name the column that holds it: --columns {column}=YOUR_COLUMN"
            )
    found = asked.of_present(present)
    if not found.sources("content"):
        raise missing_text(present, origin)
    return found


def missing_text(present: Sequence[str], origin: str) -> ColumnError:
    """What to raise where the file `origin` lacks the column of the text."""
    if "blob_id" in present:
        return ColumnError(
            f"{origin} holds the ids of files and not their text, as The Stack v2 does; fetch the contents by "
            "`blob_id`, as its page on the Hub says, and add them as a column `content`"
        )
    return ColumnError(
        f"missing column `content` (string) in {origin}; found {_listed(present)}. "
        "Name the column that holds the text: --columns content=YOUR_COLUMN"
    )


def _listed(present: Sequence[str]) -> str:
    return ", ".join(present) or "no columns"
