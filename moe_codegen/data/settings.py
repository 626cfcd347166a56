"""Typed settings: one frozen dataclass a verb, whose fields are its flags, its TOML keys and its thresholds."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from moe_codegen.errors import ConfigError

S = TypeVar("S")


def setting(default: Any, help: str, *, is_path: bool = False) -> Any:
    """A field of a settings class with the line that `--help` shows; `is_path` says that it may name files."""
    return dataclasses.field(default=default, metadata={"help": help, "is_path": is_path})


@dataclass(frozen=True)
class SourceSettings:
    """Where rows are read from, beside the path or the Hub id."""

    layout: str = setting("", "column layout by name; empty: told from the columns")
    columns: tuple[str, ...] = setting((), "OURS=THEIRS column names of another dataset, such as content=code")
    config: str = setting("", "Hub dataset: its configuration")
    data_dir: str = setting("", "Hub dataset: folder inside it, such as data/python")
    split: str = setting("train", "Hub dataset: its split")
    revision: str = setting("", "Hub dataset: its revision, such as v1.2")
    language: str = setting("", "language of every row that names none")


def settings_from(settings_class: type[S], values: Mapping[str, Any], where: str) -> S:
    """An instance of `settings_class` from `values`; lists become tuples, integers become floats.

    Raises `ConfigError` for an unknown key (naming the nearest) or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(settings_class)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(settings_class)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; the keys are {', '.join(fields)}"
            raise ConfigError(f"unknown key `{key}` in {where}{hint}")
        checked[name] = _of_type(hints[name], value, f"`{key}` in {where}")
    return settings_class(**checked)


def as_record(settings: Any) -> dict[str, Any]:
    """The settings as JSON holds them; of a path its last part, so that the same run elsewhere has the same record."""
    record = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.metadata["is_path"]:
            value = tuple(PurePath(one).name for one in value) if isinstance(value, tuple) else PurePath(value).name
        record[field.name] = list(value) if isinstance(value, tuple) else value
    return record


def _of_type(hint: Any, value: Any, what: str) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _of_type(next(part for part in parts if part is not type(None)), value, what)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{what} should be a list, found {value!r}")
        return tuple(_of_type(parts[0], one, what) for one in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{what} should be of type {hint.__name__}, found {value!r}")
    return value
