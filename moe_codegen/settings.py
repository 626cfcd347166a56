"""Typed settings: one frozen dataclass a verb, whose fields are its flags, its TOML keys and its thresholds."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from moe_codegen.errors import ConfigError

S = TypeVar("S")


def setting(default: Any, help: str, *, is_path: bool = False) -> Any:
    """A field of a settings class with the line that `--help` shows; `is_path` says that it may name files."""
    metadata = {"help": help, "is_path": is_path}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_from(settings_class: type[S], values: Mapping[str, Any], where: str) -> S:
    """An instance of `settings_class` from `values`; lists become tuples, integers become floats.

    Raises `ConfigError` for an unknown key (naming the nearest) or a value of another type.
    """
    hints = typing.get_type_hints(settings_class)
    names = [field.name for field in dataclasses.fields(settings_class)]  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            raise ConfigError(f"unknown key `{key}` in {where}{nearest(name, names)}")
        checked[name] = _of_type(hints[name], value, f"`{key}` in {where}")
    return settings_class(**checked)


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and tables of a TOML file; `ConfigError` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no TOML, or not even UTF-8
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error


def check_types(settings: Any, hints: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for the first of these fields, name -> type, whose value is of another type."""
    for name, hint in hints.items():
        _of_type(hint, getattr(settings, name), name)


def check_between(settings: Any, low: float, high: float, *names: str, open_ended: bool = False) -> None:
    """Raises `ConfigError` for the first of these fields that is given and not between the bounds.

    With `open_ended` the bounds themselves are refused, too.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (low < value < high if open_ended else low <= value <= high):
            raise ConfigError(f"{name}={value} should lie between {low} and {high}{' (both excluded)' * open_ended}")


def check_least(settings: Any, least: int, *names: str) -> None:
    """Raises `ConfigError` for the first of these fields that is given and less than `least`."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} should be at least {least}")


def default_of(field: dataclasses.Field) -> Any:
    """What a field is where nothing is given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def path_fields(settings: Any) -> list[str]:
    """The fields that may name files."""
    return [field.name for field in dataclasses.fields(settings) if field.metadata["is_path"]]


def beside(settings: S, folder: Path) -> S:
    """The settings with each path relative to `folder` where there is one of that name; else as it is, as a Hub id."""
    paths = {name: _beside(getattr(settings, name), folder) for name in path_fields(settings)}
    return dataclasses.replace(settings, **paths)  # type: ignore[type-var]


def as_record(settings: Any) -> dict[str, Any]:
    """The settings as JSON holds them; of a path its last part, so that the same run elsewhere has the same record.

    A value of an `is_path` field that is not on this machine is a Hub id; it is kept whole, since two owners may use
    one name.
    """
    record = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        record[field.name] = _as_json(value, is_path=field.metadata["is_path"])
    return record


def nearest(name: str, names: Iterable[str], kind: str = "keys") -> str:
    """The end of a message about an unknown name: the one it may have meant, or all there are of its kind."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; the {kind} are {', '.join(names)}"


def _beside(value: Any, folder: Path) -> Any:
    if isinstance(value, tuple):
        return tuple(_beside(one, folder) for one in value)
    return str(folder / value) if value and (folder / value).exists() else value


def _as_json(value: Any, *, is_path: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(one, is_path=is_path) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_as_json(one, is_path=is_path) for one in value]
    return Path(value).name if is_path and value and Path(value).exists() else value


def _of_type(hint: Any, value: Any, what: str) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        hints = [part for part in parts if part is not type(None)]
        if len(hints) > 1:
            hints = [part for part in hints if isinstance(value, typing.get_origin(part) or part)]
        if not hints:
            raise ConfigError(f"{what} should be of type {hint}, found {value!r}")
        return _of_type(hints[0], value, what)
    if origin is typing.Literal:
        if value not in parts:
            raise ConfigError(f"{what} should be one of {', '.join(map(str, parts))}, found {value!r}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{what} should be a list, found {value!r}")
        return origin(_of_type(parts[0], one, what) for one in value)
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{what} should be a table of NAME = VALUE, found {value!r}")
        return {key: _of_type(parts[1], one, f"{what}, at `{key}`,") for key, one in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{what} should be of type {hint.__name__}, found {value!r}")
    return value
