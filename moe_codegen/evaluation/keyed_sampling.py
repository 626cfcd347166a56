"""Sampling whose noise belongs to a (seed, problem, sample, position), not to a batch.

Dimensions: B rows of a batch, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Key:
    """What the noise of one completion is drawn from."""

    seed: int
    problem: str
    sample: int

    def uniform(self, position: int) -> float:
        """A number in [0, 1) for the token at `position` of the completion; 53 bits of a hash."""
        text = f"{self.seed}\0{self.problem}\0{self.sample}\0{position}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return (int.from_bytes(digest) >> 11) * 2.0**-53


class KeyedSampling(LogitsProcessor):
    """Leaves of each row the one token that its key draws, so that greedy decoding takes it.

    The token is the inverse of the cumulative distribution at the key's number, over tokens sorted by probability,
    those outside the nucleus left out (arXiv 1904.09751).

    Args:
        keys: one for each row.
        prompt_length: tokens before the completion, padding included.
        temperature: above 0.
        top_p: the nucleus is the smallest set of likeliest tokens with at least this probability.
    """

    def __init__(self, keys: Sequence[Key], prompt_length: int, temperature: float, top_p: float) -> None:
        self._keys, self._prompt_length = keys, prompt_length
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (B, V) logits -> 0 for the token drawn, -inf for every other."""
        position = input_ids.shape[1] - self._prompt_length
        drawn_B = torch.tensor([key.uniform(position) for key in self._keys], dtype=torch.float64).to(scores.device)
        probabilities_BV = (scores.float() / self._temperature).softmax(-1)
        sorted_BV, ids_BV = probabilities_BV.double().sort(descending=True, stable=True)
        cumulative_BV = sorted_BV.cumsum(-1)
        size_B = (cumulative_BV - sorted_BV < self._top_p).sum(-1, keepdim=True)  # of the nucleus, at least 1
        mass_B = cumulative_BV.gather(-1, size_B - 1)
        rank_B = (cumulative_BV <= drawn_B[:, None] * mass_B).sum(-1, keepdim=True).minimum(size_B - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, ids_BV.gather(-1, rank_B), 0.0)
