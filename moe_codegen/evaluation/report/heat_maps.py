"""A mixture's routing as heat maps: the share that each expert takes of each language, and of each kind of token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_codegen.evaluation.report.runs import EvaluatedRun


@dataclass(frozen=True)
class HeatMap:
    """Which share of each group's tokens each expert takes: of each layer a row for each group, summing to one."""

    title: str
    groups: list[str]
    experts: list[str]
    layers: dict[int, list[list[float]]]

    @property
    def greatest(self) -> float:
        """The largest share, which is drawn darkest."""
        return max(share for rows in self.layers.values() for row in rows for share in row)


@dataclass(frozen=True)
class Routing:
    """The routing of one mixture.

    Attributes:
        layers: of each its balance and what its first choices tell of language, see `metrics.load_summary`; and as
            `kind_information` what they tell of the kind of token.
    """

    label: str
    num_experts: int
    tokens: int
    maps: list[HeatMap]
    layers: list[dict[str, Any]]


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
            language | {"kind_information": kind["normalised_mutual_information"]}
            for language, kind in zip(by_language["layers"], by_kind["layers"], strict=True)
        ],
    )


def _heat_map(title: str, record: Mapping[str, Any], experts: list[str]) -> HeatMap:
    share_GLE = record["share_by_group"]
    layers = {
        layer["layer"]: [shares_LE[place] for shares_LE in share_GLE] for place, layer in enumerate(record["layers"])
    }
    return HeatMap(title, record["groups"], experts, layers)


def _expert_names(names: list[str] | None, num_experts: int) -> list[str]:
    """Numbers, or where experts have names those, with a number to it where several share one."""
    if not names:
        return [str(expert) for expert in range(num_experts)]
    each = num_experts // len(names)
    return [f"{name} {part}" if each > 1 else name for name in names for part in range(each)]
