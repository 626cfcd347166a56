"""What counts of experts say: how even the load is, and how much an expert tells of the group a token is from.

Dimensions: E experts, G groups of tokens (such as languages). Functions of `counts_E` take any leading dimensions.
"""

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from moe_codegen.metrics.load import LoadCounts

DEAD_BELOW = 0.01  # of an equal share


def expert_shares(counts_E: np.ndarray) -> np.ndarray:
    """The share of the choices that each expert took, summing to one; zeros where nothing was counted."""
    totals = counts_E.sum(axis=-1, keepdims=True)
    return counts_E / np.maximum(totals, 1)


def load_entropy(counts_E: np.ndarray) -> np.ndarray:
    """`-sum_e s_e log s_e` in nats: 0 where one expert takes everything, log E where all take the same."""
    shares = expert_shares(counts_E)
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=-1)


def load_evenness(counts_E: np.ndarray) -> np.ndarray:
    """Entropy as a fraction of log E; 1 where all experts take the same, or there is but one."""
    experts = counts_E.shape[-1]
    return load_entropy(counts_E) / np.log(experts) if experts > 1 else np.ones(counts_E.shape[:-1])


def max_over_mean(counts_E: np.ndarray) -> np.ndarray:
    """The busiest expert's load over the mean: 1 is balance, E is one expert for everything."""
    return expert_shares(counts_E).max(axis=-1) * counts_E.shape[-1]


def dead_experts(counts_E: np.ndarray, below: float = DEAD_BELOW) -> np.ndarray:
    """How many experts took less than `below` of an equal share."""
    return (expert_shares(counts_E) * counts_E.shape[-1] < below).sum(axis=-1)


def normalised_mutual_information(counts_GE: np.ndarray) -> float:
    """`I(group; expert) / H(group)`, each group weighing the same: how much of the group the expert tells.

    Theil's uncertainty coefficient: 0 where all groups are routed alike, 1 where each expert serves one group. Unlike
    a normalisation by both entropies it reaches 1 also where a group has several experts. 0 for fewer than two groups.
    """
    shares_GE = expert_shares(counts_GE[counts_GE.sum(axis=1) > 0])
    if len(shares_GE) < 2:
        return 0.0
    # Groups weigh the same, so H(group) = log G and I = H(expert) - mean over groups of H(expert | group).
    information = load_entropy(shares_GE.mean(axis=0)) - load_entropy(shares_GE).mean()
    return float(np.clip(information / np.log(len(shares_GE)), 0, 1))


def assignment_accuracy(counts_GE: np.ndarray) -> tuple[float, list[int | None]]:
    """The best assignment of an expert of its own to each group, and the share of the tokens it says right.

    Each group weighs the same. Uniform routing gives 1 / E for at most E groups, one group one expert gives 1.

    Returns:
        The accuracy, 0 where nothing was counted, and for each group its expert; None for a group without tokens, and
        for one left without an expert, where there are more than experts.
    """
    counted = np.flatnonzero(counts_GE.sum(axis=1))
    shares_GE = expert_shares(counts_GE[counted])
    groups, experts = linear_sum_assignment(shares_GE, maximize=True)
    expert_of = dict(zip(counted[groups].tolist(), experts.tolist(), strict=True))
    accuracy = float(shares_GE[groups, experts].sum() / max(len(counted), 1))
    return accuracy, [expert_of.get(group) for group in range(len(counts_GE))]


def load_summary(counts: LoadCounts) -> dict[str, Any]:
    """Everything above as one JSON object, by layer; `share_by_group` is the heat map, group by layer by expert.

    Balance is that of all choices. Agreement with the groups is that of first choices: with K experts a token, at
    most one of them can be its group's own.
    """
    chosen_LE = counts.chosen_GLE.sum(axis=0)
    layers = []
    for place, layer in enumerate(counts.layers):
        first_GE = counts.first_GLE[:, place]
        accuracy, experts = assignment_accuracy(first_GE)
        layers.append(
            {
                "layer": layer,
                "share": expert_shares(chosen_LE[place]).tolist(),
                "entropy": float(load_entropy(chosen_LE[place])),
                "evenness": float(load_evenness(chosen_LE[place])),
                "max_over_mean": float(max_over_mean(chosen_LE[place])),
                "dead_experts": int(dead_experts(chosen_LE[place])),
                "normalised_mutual_information": normalised_mutual_information(first_GE),
                "assignment_accuracy": accuracy,
                "assignment": dict(zip(counts.groups, experts, strict=True)),
            }
        )
    return {
        "groups": list(counts.groups),
        "tokens": counts.first_GLE[:, 0].sum(axis=-1).tolist(),
        "layers": layers,
        "share_by_group": expert_shares(counts.chosen_GLE).tolist(),
    }
