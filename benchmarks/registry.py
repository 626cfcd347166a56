"""The one list of benchmark cases, and what a case gives back."""

import argparse
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmarks

# The runner itself, and what imports triton, which need not be installed.
NOT_LOADED = {"__main__", "ahead_of_time", "launch_rules"}

Row = dict[str, Any]


@dataclass
class Result:
    """What one case measured: a table, the sentence it supports, and the files it drew."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A benchmark: `run(options)` measures, `add_options` declares the flags it reads from `options`."""

    name: str
    summary: str
    run: Callable[[argparse.Namespace], Result]
    add_options: Callable[[argparse.ArgumentParser], None]


CASES: dict[str, Case] = {}


def case(
    name: str, summary: str, add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> Callable[[Callable[[argparse.Namespace], Result]], Callable[[argparse.Namespace], Result]]:
    """Register the decorated function as the case `name`; `summary` is one line for the listing."""

    def register(run: Callable[[argparse.Namespace], Result]) -> Callable[[argparse.Namespace], Result]:
        if name in CASES:
            raise ValueError(f"two benchmark cases are named {name!r}")
        CASES[name] = Case(name, summary, run, add_options)
        return run

    return register


def load_cases() -> None:
    """Import every file here, so that each case is registered."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name not in NOT_LOADED:
            importlib.import_module(f"benchmarks.{module.name}")
