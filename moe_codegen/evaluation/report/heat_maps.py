"""A mixture's routing as heat maps: the share that each expert takes of each language, and of each kind of token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_codegen.evaluation.report.runs import EvaluatedRun


@dataclass(frozen=True)
class LayerMap:
    """One layer: a row of shares for each group, summing to one."""

    layer: int
    shares: list[list[float]]


@dataclass(frozen=True)
class HeatMap:
    """Which share of each group's tokens each expert takes, layer by layer."""

    title: str
    groups: list[str]
    experts: list[str]
    layers: list[LayerMap]

    @property
    def greatest(self) -> float:
        """The largest share, which is drawn darkest."""
        return max(share for layer in self.layers for row in layer.shares for share in row)


@dataclass(frozen=True)
class LayerFacts:
    """Balance of a layer, and how much of language and kind its first choices tell; see `metrics.routing`."""

    layer: int
    evenness: float
    max_over_mean: float
    dead_experts: int
    language_information: float
    language_accuracy: float
    kind_information: float


@dataclass(frozen=True)
class Routing:
    """The routing of one mixture."""

    label: str
    num_experts: int
    tokens: int
    maps: list[HeatMap]
    layers: list[LayerFacts]


def routing_of(run: EvaluatedRun) -> Routing | None:
    """What `routing.json` says; None for a run without it."""
    record = run.measures.get("routing")
    if record is None:
        return None
    by_language, by_kind = record["by_language"], record["by_kind"]
    num_experts = len(by_language["layers"][0]["share"])
    experts = _expert_names(record.get("expert_names"), num_experts)
    return Routing(
        label=run.label,
        num_experts=num_experts,
        tokens=sum(by_language["tokens"]),
        maps=[
            _heat_map("Experts by language", by_language, experts),
            _heat_map("Experts by kind of token", by_kind, experts),
        ],
        layers=[
            LayerFacts(
                layer=language["layer"],
                evenness=language["evenness"],
                max_over_mean=language["max_over_mean"],
                dead_experts=language["dead_experts"],
                language_information=language["normalised_mutual_information"],
                language_accuracy=language["assignment_accuracy"],
                kind_information=kind["normalised_mutual_information"],
            )
            for language, kind in zip(by_language["layers"], by_kind["layers"], strict=True)
        ],
    )


def _heat_map(title: str, record: Mapping[str, Any], experts: list[str]) -> HeatMap:
    share_GLE = record["share_by_group"]
    layers = [
        LayerMap(layer["layer"], [shares_LE[place] for shares_LE in share_GLE])
        for place, layer in enumerate(record["layers"])
    ]
    return HeatMap(title, record["groups"], experts, layers)


def _expert_names(names: list[str] | None, num_experts: int) -> list[str]:
    """Numbers, or where experts have names those, with a number to it where several share one."""
    if not names:
        return [str(expert) for expert in range(num_experts)]
    each = num_experts // len(names)
    return [f"{name} {part}" if each > 1 else name for name in names for part in range(each)]
