"""How many tokens of each language: weights, or a temperature between the data's own proportions and equal parts."""

from collections.abc import Mapping

import numpy as np

from moe_codegen.errors import ConfigError


def mixture_weights(tokens: Mapping[str, int], weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares that add up to 1. Given `weights` hold as they are; without them w_l is proportional to n_l^(1 / T).

    T = 1 keeps the proportions of the data, a large T nears equal parts. Raises `ConfigError` for a language without
    tokens.
    """
    unknown = sorted(set(weights) - set(tokens))
    if unknown:
        raise ConfigError(f"no tokens in {', '.join(unknown)}; the languages are {', '.join(sorted(tokens))}")
    raw = dict(weights) or {name: count ** (1 / temperature) for name, count in tokens.items() if count}
    total = sum(raw.values())
    return {name: raw[name] / total for name in sorted(raw)}


def passes(tokens: Mapping[str, int], shares: Mapping[str, float], total: int | None) -> dict[str, float]:
    """How often each language's documents are taken to give `total` tokens in these shares; fractions take a part.

    Without `total`, as many tokens as there are without any document taken twice.
    """
    budget = total if total is not None else min((tokens[name] / share for name, share in shares.items()), default=0)
    return {name: budget * share / tokens[name] for name, share in shares.items()}


def repeated(documents: np.ndarray, lengths: np.ndarray, times: float) -> np.ndarray:
    """`documents` (in random order) taken `times` over: whole passes, then the first of them up to the fraction."""
    whole = int(times)
    ends = np.cumsum(lengths)
    part = int(np.searchsorted(ends, (times - whole) * (ends[-1] if len(ends) else 0) + 0.5, side="right"))
    return np.concatenate([*[documents] * whole, documents[:part]]).astype(np.int64)
