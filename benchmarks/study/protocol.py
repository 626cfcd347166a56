"""What is compared with what: the sizes of the study, and the models of it with what each may spend.

Every rival continues the same base. Three comparisons are fair, each in its own way: equal tokens; equal training FLOPs
(`training_flops`), where the dense rival sees more tokens, since an expert costs what its dense base costs and a
mixture of two of them more; and equal active FLOPs, where experts are cut in two so that a token costs what it costs
the dense model.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

LANGUAGES = ("cpp", "java", "javascript", "python")
BASE = "base"  # also the name of the expert that is its FFN
STABLE = 0.8  # share of a run at the peak learning rate; in the rest it falls to zero (arXiv 2405.18392)
# Of the base's peak learning rate, where it is continued: Branch-Train-MiX has 1e-4 after Llama 2's 3e-4.
CONTINUED = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the model, the data and the runs; tokens include padding.

    Attributes:
        width, layers, heads: of a SantaCoder-like model: D, L, and heads that share one key and value head.
        train_bytes: of each language, at most, taken in turn from its repositories.
        base_tokens: the base is trained on.
        expert_tokens: each language's expert continues on; the mixture of them then on as many as all of them.
        batch_size: sequences an optimiser step.
        learning_rate: the base's at its peak; whatever continues it peaks at `CONTINUED` of that.
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
    batch_size: int
    learning_rate: float
    test_files: int
    curve_tokens: int
    curve_points: int
    precision: str

    @property
    def mix_tokens(self) -> int:
        """What the mixture of the language experts continues on."""
        return len(LANGUAGES) * self.expert_tokens

    @property
    def continued_tokens(self) -> int:
        """What every rival continues the base on at equal tokens: the experts' and the mixture's together."""
        return len(LANGUAGES) * self.expert_tokens + self.mix_tokens

    def steps(self, tokens: int) -> int:
        """Optimiser steps for `tokens`."""
        return max(1, round(tokens / (self.batch_size * self.sequence_length)))


# 44,000 parameters, half of them in the layers: so few that the base has learnt most of what it can.
CPU = Scale(
    vocabulary=512,
    sequence_length=128,
    width=32,
    layers=2,
    heads=2,
    train_bytes=10_000_000,
    base_tokens=5_000_000,
    expert_tokens=400_000,
    batch_size=32,
    learning_rate=4e-3,
    test_files=60,
    curve_tokens=10_000,
    curve_points=16,
    precision="float32",
)
SCALES = {
    "cpu": CPU,
    # Only to see that every step runs.
    "smoke": replace(
        CPU,
        sequence_length=64,
        width=16,
        train_bytes=100_000,
        base_tokens=4096,
        expert_tokens=1024,
        batch_size=8,
        test_files=4,
        curve_tokens=500,
        curve_points=4,
    ),
    # About 10 million weights in the layers. The corpus is read several times over.
    "gpu": replace(
        CPU,
        vocabulary=4096,
        sequence_length=512,
        width=384,
        layers=6,
        heads=6,
        train_bytes=10**9,
        base_tokens=400_000_000,
        expert_tokens=40_000_000,
        batch_size=128,
        learning_rate=1e-3,
        test_files=200,
        curve_tokens=100_000,
        precision="bf16",
    ),
}


@dataclass(frozen=True)
class Mixture:
    """How a mixture is made of the base or of the experts, before any training.

    Attributes:
        of_experts: whether its experts are the language experts; otherwise copies of the base's FFN.
        options: for `moe_codegen.upcycle`.
        anchored: whether the base's own FFN is an expert too.
    """

    title: str
    of_experts: bool
    options: dict[str, Any] = field(default_factory=dict)
    anchored: bool = False

    @property
    def expert_names(self) -> tuple[str, ...]:
        """Of what is joined; none of copies."""
        return (*LANGUAGES, *([BASE] if self.anchored else [])) if self.of_experts else ()


SHARED = {"shared": "average"}  # attention, embeddings and norms are the experts' mean (arXiv 2403.07816)
NOISE = {"noise_std": 0.1}  # of each tensor's root mean square: copies without it stay the same for long
HALVES = {"granularity": 2}
MIXTURES = {
    "joined-random": Mixture("experts joined, random router", True, SHARED),
    "joined-centroid": Mixture("experts joined, centroid router", True, {**SHARED, "router": "centroid"}),
    "joined": Mixture("experts joined, ridge router", True, {**SHARED, "router": "ridge"}),
    "joined-anchored": Mixture("experts and base joined, ridge router", True, {**SHARED, "router": "ridge"}, True),
    "joined-fine": Mixture("experts joined, cut in two", True, {**SHARED, **HALVES, "router": "ridge"}),
    "copies": Mixture("copies of the base", False, {**NOISE, "num_experts": len(LANGUAGES)}),
    "copies-fine": Mixture(
        "copies of the base, cut in two", False, {**NOISE, **HALVES, "num_experts": 2 * len(LANGUAGES)}
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
        return self.start != BASE

    @property
    def of_experts(self) -> bool:
        """Whether the language experts' training is part of its budget."""
        return self.is_mixture and MIXTURES[self.start].of_experts


# In the order in which they are trained: one whose FLOPs another spends comes before it.
RIVALS = {
    "dense": Rival("dense", BASE),
    "mixture": Rival("language experts, mixed", "joined"),
    "upcycled": Rival("sparse upcycling", "copies"),
    "dense-as-mixture": Rival("dense, FLOPs of the mixed experts", BASE, equal_flops="mixture"),
    "dense-as-upcycled": Rival("dense, FLOPs of sparse upcycling", BASE, equal_flops="upcycled"),
    "mixture-fine": Rival("language experts cut in two, mixed", "joined-fine"),
    "upcycled-fine": Rival("sparse upcycling, half-size experts", "copies-fine"),
    "mixture-anchored": Rival("language experts and base, mixed", "joined-anchored"),
    "mixture-random": Rival("language experts, random router, mixed", "joined-random"),
}
LONGEST_DENSE = "dense-as-upcycled"

Equal = Literal["tokens", "training FLOPs", "active FLOPs", ""]


@dataclass(frozen=True)
class Comparison:
    """How much `one` loses more than `other` on the same files, and what both were given alike."""

    one: str
    other: str
    equal: Equal

    @property
    def title(self) -> str:
        """Which is taken from which."""
        return f"{self.one} - {self.other}"


COMPARISONS = (
    Comparison("mixture", "dense", "tokens"),
    Comparison("upcycled", "dense", "tokens"),
    Comparison("mixture", "dense-as-mixture", "training FLOPs"),
    Comparison("upcycled", "dense-as-upcycled", "training FLOPs"),
    # Equal tokens too, and but for the router equal training FLOPs.
    Comparison("mixture-fine", "dense", "active FLOPs"),
    Comparison("upcycled-fine", "dense", "active FLOPs"),
    # Of the ways to a mixture: equal tokens, and where both are of one size equal FLOPs.
    Comparison("mixture", "joined", ""),
    Comparison("mixture", "upcycled", "tokens"),
    Comparison("mixture-fine", "upcycled-fine", "tokens"),
    Comparison("mixture-anchored", "mixture", "tokens"),
    Comparison("mixture-random", "mixture", "tokens"),
)


def budget(rival: Rival, scale: Scale) -> int | None:
    """Tokens that the rival itself is trained on; None where equal FLOPs decide."""
    if rival.equal_flops:
        return None
    return scale.mix_tokens if rival.of_experts else scale.continued_tokens
