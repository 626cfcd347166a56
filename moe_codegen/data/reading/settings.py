"""Where rows are read from, as settings that every verb has."""

from dataclasses import dataclass

from moe_codegen.settings import check_least, setting


@dataclass(frozen=True)
class SourceSettings:
    """Where rows are read from, beside the path or the Hub id."""

    layout: str = setting("", "usual or the-stack columns, or checkouts for repositories; empty: told from IN")
    columns: tuple[str, ...] = setting((), "OURS=THEIRS for columns of other names than usual, such as content=body")
    config: str = setting("", "Hub dataset: its configuration")
    data_dir: str = setting("", "Hub dataset: folder inside it, such as data/python")
    split: str = setting("train", "Hub dataset: its split")
    revision: str = setting("", "Hub dataset: its revision, such as v1.2")
    language: str = setting("", "language of every row that names none")
    limit: int | None = setting(None, "rows to read at most, for a trial: some of many parts of IN")

    def __post_init__(self) -> None:
        check_least(self, 1, "limit")
