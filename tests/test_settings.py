from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from moe_codegen.errors import ConfigError
from moe_codegen.settings import as_record, check_types, setting, settings_from


@dataclass(frozen=True)
class Settings:
    rate: float = setting(0.5, "a rate")
    mode: Literal["one", "two"] = setting("one", "a mode")
    folders: Mapping[str, str] = setting({}, "folders by name", is_path=True)
    limit: int | None = setting(None, "a limit")


def test_values_become_the_fields_types():
    settings = settings_from(Settings, {"rate": 1, "mode": "two", "folders": {"a": "x/y"}, "limit": None}, "here")
    assert settings == Settings(1.0, "two", {"a": "x/y"})


def test_a_record_has_the_name_of_a_folder_and_the_whole_of_a_hub_id(tmp_path):
    settings = Settings(folders={"a": str(tmp_path), "b": "owner/name", "c": ""})
    folders = {"a": tmp_path.name, "b": "owner/name", "c": ""}
    assert as_record(settings) == {"rate": 0.5, "mode": "one", "folders": folders, "limit": None}


def test_two_settings_share_no_mapping():
    assert Settings().folders is not Settings().folders


@dataclass
class Either:
    layers: str | list[int] = "all"


@pytest.mark.parametrize("layers", ["all", [0, 2]])
def test_a_field_may_be_of_either_of_two_types(layers):
    check_types(Either(layers), Either.__annotations__)


@pytest.mark.parametrize("layers", [3, None, ["0"]])
def test_a_field_of_neither_type_is_refused(layers):
    with pytest.raises(ConfigError, match="layers should be of type"):
        check_types(Either(layers), Either.__annotations__)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "three"}, "`mode` in here should be one of one, two, found 'three'"),
        ({"folders": ["x"]}, "`folders` in here should be a table of NAME = VALUE"),
        ({"folders": {"a": 1}}, "at `a`, should be of type str, found 1"),
        ({"limt": 1}, "unknown key `limt` in here; did you mean `limit`?"),
        ({"limit": True}, "should be of type int"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        settings_from(Settings, values, "here")
