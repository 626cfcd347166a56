"""What is compared with what: the sizes of the study, and the models of it with what each may spend.

Every rival continues the same base. Two budgets make a comparison: tokens, and training FLOPs (`training_flops`). An
expert costs what its dense base costs, a mixture more, so the dense rival at equal FLOPs sees more tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LANGUAGES = ("cpp", "java", "javascript", "python")
STABLE = 0.8  # share of a run at the peak learning rate; in the rest it falls to zero (arXiv 2405.18392)
COPIES = len(LANGUAGES)


@dataclass(frozen=True)
class Scale:
    """Sizes of the model, the data and the runs; tokens include padding.

    Attributes:
        width, layers, heads: of a SantaCoder-like model: D, L, and heads that share one key and value head.
        train_bytes: of each language, at most, taken in turn from its repositories.
        base_tokens: the base is trained on.
        expert_tokens: each language's expert continues on.
        mix_tokens: the mixture of the experts continues on, after them.
        test_files: of each language, at most, taken in turn from its held-out repositories.
        curve_tokens: of each language, on which the base and the rivals are measured while they learn.
        curve_points: how often in `continued_tokens`.
    """

    vocabulary: int
    sequence_length: int
    width: int
    layers: int
    heads: int
    train_bytes: int
    base_tokens: int
    expert_tokens: int
    mix_tokens: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    test_files: int
    curve_tokens: int
    curve_points: int
    precision: str = "float32"

    @property
    def continued_tokens(self) -> int:
        """What every rival continues the base on at equal tokens: the experts' and the mixture's together."""
        return len(LANGUAGES) * self.expert_tokens + self.mix_tokens

    def steps(self, tokens: int) -> int:
        """Optimiser steps for `tokens`."""
        return max(1, round(tokens / (self.batch_size * self.sequence_length)))


SCALES = {
    "smoke": Scale(
        vocabulary=512,
        sequence_length=64,
        width=16,
        layers=2,
        heads=2,
        train_bytes=100_000,
        base_tokens=4096,
        expert_tokens=1024,
        mix_tokens=4096,
        batch_size=8,
        micro_batch_size=8,
        learning_rate=3e-3,
        test_files=4,
        curve_tokens=500,
        curve_points=4,
    ),
    # 48,000 parameters, half of them in the layers: so few that the base has learnt most of what it can.
    "cpu": Scale(
        vocabulary=512,
        sequence_length=256,
        width=32,
        layers=2,
        heads=2,
        train_bytes=10_000_000,
        base_tokens=6_000_000,
        expert_tokens=1_000_000,
        mix_tokens=4_000_000,
        batch_size=16,
        micro_batch_size=16,
        learning_rate=4e-3,
        test_files=100,
        curve_tokens=10_000,
        curve_points=32,
    ),
    # About 10 million weights in the layers. The corpus is read several times over.
    "gpu": Scale(
        vocabulary=4096,
        sequence_length=512,
        width=384,
        layers=6,
        heads=6,
        train_bytes=10**9,
        base_tokens=400_000_000,
        expert_tokens=40_000_000,
        mix_tokens=160_000_000,
        batch_size=128,
        micro_batch_size=64,
        learning_rate=1e-3,
        test_files=200,
        curve_tokens=100_000,
        curve_points=20,
        precision="bf16",
    ),
}


@dataclass(frozen=True)
class Mixture:
    """How a mixture is made of the base or of the experts, before any training.

    Attributes:
        of_experts: whether its experts are the language experts; otherwise copies of the base's FFN.
        options: for `moe_codegen.upcycle`.
    """

    title: str
    of_experts: bool
    options: dict[str, Any] = field(default_factory=dict)


NOISE = {"noise_std": 0.1}  # of each tensor's root mean square: copies without it stay the same for long
SHARED = {"shared": "average"}  # attention, embeddings and norms are the experts' mean (arXiv 2403.07816)
MIXTURES = {
    "joined-random": Mixture("experts joined, random router, untrained", True, SHARED),
    "joined": Mixture("experts joined, ridge router, untrained", True, {**SHARED, "router": "ridge"}),
    "joined-fine": Mixture(
        "experts joined and cut in two, untrained", True, {**SHARED, "router": "ridge", "granularity": 2}
    ),
    "copies": Mixture("copies of the base, untrained", False, {"num_experts": COPIES, **NOISE}),
    "copies-fine": Mixture(
        "copies of the base cut in two, untrained", False, {"num_experts": 2 * COPIES, "granularity": 2, **NOISE}
    ),
}


@dataclass(frozen=True)
class Rival:
    """A model that continues the base on all languages.

    Attributes:
        start: "base", or the mixture it is trained from.
        equal_flops: a dense rival only: the mixture whose training FLOPs in all it spends; None spends equal tokens.
    """

    title: str
    start: str
    equal_flops: str | None = None

    @property
    def is_mixture(self) -> bool:
        """Whether it has experts."""
        return self.start != "base"

    @property
    def of_experts(self) -> bool:
        """Whether the language experts' training is part of its budget."""
        return self.is_mixture and MIXTURES[self.start].of_experts


# In the order in which they are trained: what the first question needs comes first.
RIVALS = {
    "mixture": Rival("mixture of the language experts", "joined"),
    "dense": Rival("dense, equal tokens", "base"),
    "dense-flops": Rival("dense, FLOPs of the mixture", "base", equal_flops="mixture"),
    "mixture-fine": Rival("mixture of the language experts, half-size", "joined-fine"),
    "upcycled-fine": Rival("sparse upcycling, half-size experts", "copies-fine"),
    "upcycled": Rival("sparse upcycling", "copies"),
    "dense-flops-upcycled": Rival("dense, FLOPs of sparse upcycling", "base", equal_flops="upcycled"),
}
# (one, other): how much the first loses more than the second, on the same files.
COMPARISONS = (
    ("mixture", "joined"),
    ("mixture", "dense"),
    ("mixture", "dense-flops"),
    ("mixture-fine", "dense"),
    ("upcycled", "dense"),
    ("upcycled", "dense-flops-upcycled"),
    ("upcycled-fine", "dense"),
    ("mixture", "upcycled"),
    ("mixture-fine", "upcycled-fine"),
)
# Whose curves are read for the point from which the first is better.
CURVES_COMPARED = tuple(
    (one, other) for one, other in COMPARISONS if one in RIVALS and other in RIVALS and not RIVALS[other].is_mixture
)


def budget(rival: Rival, scale: Scale) -> int | None:
    """Tokens that the rival itself is trained on; None where equal FLOPs decide."""
    if rival.equal_flops:
        return None
    return scale.mix_tokens if rival.of_experts else scale.continued_tokens


@dataclass(frozen=True)
class Curve:
    """Validation loss while a rival learns, all languages alike.

    Attributes:
        tokens, flops: spent since the base, the experts' part included.
        losses: nats per token.
        stable: how many of the points were measured at the peak learning rate; the last point is the end.
    """

    tokens: Sequence[float]
    flops: Sequence[float]
    losses: Sequence[float]
    stable: int


def crossing(x_one: Sequence[float], one: Sequence[float], x_other: Sequence[float], other: Sequence[float]) -> Any:
    """From which x on curve `one` stays below curve `other`, both read at the points of `one` that lie on both.

    Returns:
        The first x of the last stretch on which `one` is below, to the end; None where it ends above.
    """
    pays = None
    for x, loss in zip(x_one, one, strict=True):
        if x_other[0] <= x <= x_other[-1]:
            below = loss < _at(x, x_other, other)
            pays = (x if pays is None else pays) if below else None
    return pays


def _at(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The polygon through (xs, ys) at x, within its ends."""
    place = next(i for i in range(1, len(xs)) if x <= xs[i])
    share = (x - xs[place - 1]) / (xs[place] - xs[place - 1])
    return ys[place - 1] + share * (ys[place] - ys[place - 1])
