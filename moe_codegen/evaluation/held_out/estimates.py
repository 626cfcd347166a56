"""From the files of `measure` to estimates with intervals, of one model and of the difference between two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_codegen.errors import ConfigError
from moe_codegen.metrics import (
    DocumentLosses,
    Interval,
    loss_differences,
    losses_by_language,
    share_difference_interval,
    share_interval,
)
from moe_codegen.metrics.intervals import too_few
from moe_codegen.metrics.loss import ALL, Unit

UNITS: dict[str, Unit] = {"loss, nats per token": "token", "bits per byte": "byte"}
SCORES = {"exact": "exact match", "similarity": "edit similarity", "parses": "syntax valid"}
TASKS = {"line": "line completion", "fill": "fill in the middle"}
_SPEED = ("batch_tokens",)
LOWER_IS_BETTER = frozenset(UNITS)


@dataclass(frozen=True)
class Estimate:
    """A measure of one language, with its 95% interval over repositories.

    Attributes:
        measure: what is measured, in words.
        language: or "all".
        value, low, high: the estimate and its interval; None for bounds where repositories are too few.
        files, repositories: how many it comes from.
    """

    measure: str
    language: str
    value: float
    low: float | None
    high: float | None
    files: int
    repositories: int

    @property
    def text(self) -> str:
        """The estimate and its interval as a person reads them."""
        bounds = too_few(self.repositories) if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.value:.3f} ({bounds})"


def estimates(record: Mapping[str, Any]) -> list[Estimate]:
    """What a file of `measure` says by language, in the order of measures and languages."""
    if record["measure"] == "loss":
        losses = losses_of(record)
        return [
            _estimate(measure, language, interval, int(losses.of(language).sum()))
            for measure, unit in UNITS.items()
            for language, interval in losses_by_language(losses, unit).items()
        ]
    if record["measure"] == "completion":
        return [_score(*group) for group in _groups(record["completions"])]
    return []


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Estimate]:
    """How much more `one` has than `other` of each measure, over the same files and places.

    Raises:
        ConfigError: records of different measures, or of other files or settings.
    """
    for part in ("measure", "documents", "settings"):
        if _comparable(one[part]) != _comparable(other[part]):
            raise ConfigError(f"the two records are of other {part}; measure both models on the same data")
    if one["measure"] == "loss":
        a, b = losses_of(one), losses_of(other)
        comparable = {
            name: unit for name, unit in UNITS.items() if unit == "byte" or np.array_equal(a.tokens, b.tokens)
        }
        return [
            _estimate(measure, language, interval, int(a.of(language).sum()))
            for measure, unit in comparable.items()
            for language, interval in loss_differences(a, b, unit).items()
        ]
    if one["measure"] == "completion":
        paired = _groups(_pair(one["completions"], other["completions"]))
        return [_score(*group, of_values=share_difference_interval) for group in paired]
    return []


def losses_of(record: Mapping[str, Any]) -> DocumentLosses:
    """The losses in a file of `measure`."""
    losses = record["losses"]
    return DocumentLosses(
        names=tuple(losses["names"]),
        repositories=tuple(losses["repositories"]),
        languages=tuple(losses["languages"]),
        nats=np.array(losses["nats"]),
        tokens=np.array(losses["tokens"]),
        bytes=np.array(losses["bytes"]),
    )


def _comparable(part: Any) -> Any:
    """A part of a record without the settings that change speed alone."""
    return {key: value for key, value in part.items() if key not in _SPEED} if isinstance(part, dict) else part


def _estimate(measure: str, language: str, interval: Interval, files: int) -> Estimate:
    return Estimate(measure, language, interval.value, interval.low, interval.high, files, interval.clusters)


def _groups(completions: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]], str]]:
    """(measure, language, its completions, score) for every score that any of them has."""
    groups = []
    for task, task_name in TASKS.items():
        for score, score_name in SCORES.items():
            mine = [one for one in completions if one["task"] == task and one[score] is not None]
            for language in [*sorted({one["language"] for one in mine}), ALL] if mine else []:
                some = [one for one in mine if language in (one["language"], ALL)]
                groups.append((f"{task_name}: {score_name}", language, some, score))
    return groups


def _score(
    measure: str,
    language: str,
    completions: Sequence[dict[str, Any]],
    score: str,
    of_values: Callable[..., Interval] = share_interval,
) -> Estimate:
    values = np.array([float(one[score]) for one in completions])
    interval = of_values(values, [one["repository"] for one in completions])
    return _estimate(measure, language, interval, len({one["document"] for one in completions}))


def _pair(ones: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Completions at the same places, each score the difference; places that only one model was asked are left out."""
    key = ("document", "offset", "task")
    by_place = {tuple(other[part] for part in key): other for other in others}
    paired = []
    for one in ones:
        other = by_place.get(tuple(one[part] for part in key))
        if other is not None:
            scores = {
                score: None if one[score] is None or other[score] is None else float(one[score]) - float(other[score])
                for score in SCORES
            }
            paired.append(one | scores)
    return paired
