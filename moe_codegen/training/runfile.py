"""The run file: settings in TOML, read, overridden by flags, and kept beside what they made."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from moe_codegen.settings import beside, path_fields, read_toml, settings_from
from moe_codegen.training.settings import TrainSettings

S = TypeVar("S", bound=TrainSettings)


def read_run(settings_class: type[S], path: str | Path, overrides: Mapping[str, Any] | None = None) -> S:
    """The checked settings of a TOML file, where `overrides` do not replace them; its paths are relative to it.

    In a table, such as `trainer`, overrides replace only the entries that they name.

    Raises `ConfigError` for what is unknown, of another type, or cannot hold.
    """
    path = Path(path)
    settings = beside(settings_from(settings_class, read_toml(path), str(path)), path.parent)
    given = settings_from(settings_class, overrides or {}, "the flags")
    new = {name: _over(getattr(settings, name), getattr(given, name)) for name in overrides or {}}
    settings = dataclasses.replace(settings, **new)
    settings.check()
    return settings


def write_run(settings: TrainSettings, path: Path) -> None:
    """Write settings so that `read_run` reads them back from anywhere; None and empty fields are left out."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values |= {name: _absolute(values[name]) for name in path_fields(settings)}
    lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value not in (None, "", (), {})]
    path.write_text("".join(lines), encoding="utf-8")


def _over(before: Any, given: Any) -> Any:
    return {**before, **given} if isinstance(given, Mapping) else given


def _absolute(value: Any) -> Any:
    """A path that is there without what it is relative to; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return str(Path(value).absolute()) if value and Path(value).exists() else value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # Strings, booleans, integers and finite floats are written alike in JSON and TOML.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
