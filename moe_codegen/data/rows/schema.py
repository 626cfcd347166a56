"""The columns of a row, and how other datasets' columns map to them.

A row is one file. `SCHEMA` is what every verb writes; a `Layout` says which columns of a source it is read from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Layout:
    """Where each of our columns is found in a source; a tuple of columns is joined (licences only).

    `carried` names columns of the source that are passed on unchanged, with their types; `language` is that of the rows
    that name none.
    """

    name: str
    columns: Mapping[str, str | tuple[str, ...]]
    carried: Mapping[str, pa.DataType] = field(default_factory=dict)
    language: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(SCHEMA.names))
        if unknown:
            raise ColumnError(
                f"column mapping {self.name!r} has {', '.join(unknown)}; the columns are {', '.join(SCHEMA.names)}"
            )
        if "content" not in self.columns:
            raise ColumnError(f"column mapping {self.name!r} does not say which column holds `content`")

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


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("moe-codegen", {name: name for name in SCHEMA.names}),
        _the_stack(),
        Layout(
            "the-stack-smol",
            {
                "repo": "repository_name",
                "path": "path",
                "language": "lang",
                "licenses": "licenses",
                "content": "content",
            },
        ),
        Layout(
            "starcoderdata",
            {
                "hexsha": "id",
                "repo": "max_stars_repo_name",
                "path": "max_stars_repo_path",
                "stars": "max_stars_count",
                "content": "content",
            },
        ),
        Layout(
            "github-code",
            {"repo": "repo_name", "path": "path", "language": "language", "licenses": "license", "content": "code"},
        ),
    )
}
# What only this layout has: detection reads from the most telling to the least.
_TELLTALES = {
    "the-stack": {"max_stars_repo_name", "hexsha", "content"},
    "starcoderdata": {"max_stars_repo_name", "content"},
    "the-stack-smol": {"repository_name", "content"},
    "github-code": {"repo_name", "code"},
    "moe-codegen": {"content"},
}


def detect_layout(present: Sequence[str], origin: str) -> Layout:
    """The layout whose columns are `present` in the file `origin`.

    Carried columns that are ours by name stay, so that what The Stack carries survives every verb.
    Raises `ColumnError` where no column can hold the text.
    """
    for name, telltale in _TELLTALES.items():
        if telltale <= set(present):
            layout = LAYOUTS[name]
            if name == "moe-codegen":
                carried = {column: kind for column, kind in LAYOUTS["the-stack"].carried.items() if column in present}
                return Layout(name, {column: column for column in layout.columns if column in present}, carried)
            return layout
    raise missing_text("content", present, origin)


def missing_text(column: str, present: Sequence[str], origin: str) -> ColumnError:
    """What to raise where the file `origin` lacks the column of the text."""
    return ColumnError(
        f"missing column `{column}` (string) in {origin}; found {', '.join(present) or 'no columns'}. "
        "Name the column that holds the text: --columns content=YOUR_COLUMN"
    )
