"""What share of a text each expert took."""

from collections import Counter
from collections.abc import Iterable


def shares_of_experts(experts: Iterable[int]) -> dict[int, float]:
    """Expert -> the share of the tokens it took, the largest first; shares sum to one."""
    counts = Counter(experts)
    total = counts.total()
    return {expert: count / total for expert, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}
