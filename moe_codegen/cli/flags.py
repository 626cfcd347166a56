"""The flags of a verb are the fields of its settings."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from moe_codegen.errors import ConfigError
from moe_codegen.settings import default_of, settings_from

S = TypeVar("S")


def keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A parameter of a command that is made at run time; without `default` it must be given."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def flags_of(settings_class: type, *, overriding: bool = False, panel: str | None = None) -> list[inspect.Parameter]:
    """A keyword parameter for each field; a tuple is a flag that may be repeated, a mapping one of NAME=VALUE.

    With `overriding` the flags override a file, so each is None unless given, and its help names the default. A field
    that is itself settings stands for its own fields, which `--help` shows in a `panel` of its name; a flag that two of
    them share is there once, and goes to both.
    """
    hints = typing.get_type_hints(settings_class)
    parameters: list[inspect.Parameter] = []
    for field in dataclasses.fields(settings_class):
        hint, default = hints[field.name], default_of(field)
        if typing.get_origin(hint) is tuple:
            hint, default = list[typing.get_args(hint)[0]], list(default)  # type: ignore[misc]
        elif typing.get_origin(hint) is Mapping:
            hint, default = list[str], [f"{key}={value}" for key, value in default.items()]
        if dataclasses.is_dataclass(hint):  # a part, whose fields are flags of the whole
            taken = {parameter.name for parameter in parameters}
            parameters += [flag for flag in flags_of(hint, panel=field.name.capitalize()) if flag.name not in taken]  # type: ignore[arg-type]
            continue
        help, place = field.metadata["help"], panel
        if overriding:
            # Apart, or the column of their --no- forms would cut every flag short on a terminal of 80.
            place = "Switches" if hint is bool else panel
            if default is not None and default not in ("", []):
                help += f" [default: {default}]"
            hint, default = hint | None, None
        parameters.append(keyword(field.name, Annotated[hint, typer.Option(help=help, rich_help_panel=place)], default))
    return parameters


def settings_of(settings_class: type[S], given: Mapping[str, Any]) -> S:
    """The settings that a command made of `flags_of(settings_class)` was given."""
    return settings_from(settings_class, values_of(settings_class, given), "the flags")


def values_of(settings_class: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> value of those flags of `settings_class` that were given."""
    hints = typing.get_type_hints(settings_class)
    values = {}
    for field in dataclasses.fields(settings_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = settings_of(hint, given)  # type: ignore[arg-type]
            continue
        value = given[field.name]
        if value is not None:
            if typing.get_origin(hint) is Mapping:
                value = dict(_pair(field.name, text, typing.get_args(hint)[1]) for text in value)
            values[field.name] = value
    return values


def _pair(name: str, text: str, kind: Any) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"--{name.replace('_', '-')} {text} should be NAME=VALUE")
    return key, _literal(value) if kind is Any else value


def _literal(text: str) -> Any:
    """A number, true or false as such; anything else is text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
