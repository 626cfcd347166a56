"""Losses of one model trained with several seeds: their mean with its interval over repositories, and their spread."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_codegen.metrics import DocumentLosses, Interval, loss_differences, losses_by_language


@dataclass(frozen=True)
class Estimate:
    """A loss or a difference of two, nats a token.

    Attributes:
        interval: of the mean over seeds: what other repositories would change.
        by_seed: what other seeds do change.
    """

    interval: Interval
    by_seed: tuple[float, ...]

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None of a single one."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else None

    def __str__(self) -> str:
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        bounds = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        return f"{value:.3f}{bounds}" + (f" ±{self.spread:.3f}" if self.spread is not None else "")


Estimates = dict[str, Estimate]  # by language, and for "all"


def estimate(losses: Sequence[DocumentLosses]) -> Estimates:
    """Of one model, with each seed."""
    return _joined(losses_by_language(_mean(losses)), [losses_by_language(one) for one in losses])


def estimate_differences(ones: Sequence[DocumentLosses], others: Sequence[DocumentLosses]) -> Estimates:
    """How much one model loses more than another, each seed's models paired on the same files."""
    pairs = zip(ones, others, strict=True)
    return _joined(loss_differences(_mean(ones), _mean(others)), [loss_differences(*pair) for pair in pairs])


def _mean(losses: Sequence[DocumentLosses]) -> DocumentLosses:
    return replace(losses[0], nats=np.mean([one.nats for one in losses], axis=0))


def _joined(mean: dict[str, Interval], by_seed: Sequence[dict[str, Interval]]) -> Estimates:
    return {group: Estimate(interval, tuple(one[group].value for one in by_seed)) for group, interval in mean.items()}
