"""Completions of many prompts at a time, each ended by its own rules."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.keyed_sampling import Key, KeyedSampling
from moe_codegen.evaluation.problems import Problem
from moe_codegen.evaluation.settings import SamplingSettings
from moe_codegen.generation import encode_prompt, generate_plainly
from moe_codegen.generation.completion import end_ids
from moe_codegen.generation.decoding import IncrementalDecoder, find_stop
from moe_codegen.languages import canonical_language
from moe_codegen.metrics.loss import told_languages


@dataclass(frozen=True)
class Batch:
    """What one call wrote: a text for each request, tokens in all, and the seconds it took."""

    texts: list[str]
    tokens: int
    seconds: float


class Writer:
    """Writes completions with one model.

    Args:
        model, tokenizer: as `load_model` gives them.
        settings: how completions are drawn.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: SamplingSettings) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._positions = getattr(model.config, "max_position_embeddings", None) or 2**31
        self._ends = end_ids(model, tokenizer, None)

    def check(self, problems: Sequence[Problem]) -> None:
        """Refuse prompts that leave the model no room to answer, with `ConfigError`, unless they may be truncated."""
        if self._settings.truncate_prompts:
            return
        lengths = {problem.name: len(self._encode(problem)) for problem in problems}
        too_long = [name for name, length in lengths.items() if length >= self._positions]
        if too_long:
            raise ConfigError(
                f"{len(too_long)} of {len(lengths)} prompts are longer than the model's {self._positions} positions, "
                f"the first {too_long[0]} with {lengths[too_long[0]]} tokens; --truncate-prompts keeps their ends"
            )

    def write(self, requests: Sequence[tuple[Problem, int]]) -> Batch:
        """A completion for each (problem, number of the sample)."""
        prompts = [self._encode(problem) for problem, _ in requests]
        rooms = [min(self._settings.max_tokens, self._positions - len(prompt)) for prompt in prompts]
        rows = [
            _Row(IncrementalDecoder(self._tokenizer, prompt), problem.stop_tokens, room, self._ends)
            for prompt, (problem, _), room in zip(prompts, requests, rooms, strict=True)
        ]
        start = time.perf_counter()
        # A row that has used up its positions cannot go along until the others are done, so equal rooms go together.
        for room in sorted(set(rooms)):
            chosen = [index for index, each in enumerate(rooms) if each == room]
            keys = [Key(self._settings.seed, requests[index][0].name, requests[index][1]) for index in chosen]
            languages = [canonical_language(requests[index][0].language) for index in chosen]
            self._generate(
                [prompts[index] for index in chosen], keys, languages, [rows[index] for index in chosen], room
            )
        return Batch([row.finish() for row in rows], sum(row.tokens for row in rows), time.perf_counter() - start)

    def _generate(
        self, prompts: list[list[int]], keys: list[Key], languages: list[str], rows: list["_Row"], room: int
    ) -> None:
        """Let the model write at most `room` tokens after each prompt, and show them to `rows`."""
        temperature, top_p = self._settings.temperature, self._settings.top_p
        noise = [KeyedSampling(keys, max(map(len, prompts)), temperature, top_p)] if temperature else []
        told = told_languages(self._model, languages)
        with torch.inference_mode():
            generate_plainly(
                self._model,
                self._tokenizer,
                prompts,
                max_new_tokens=room,
                stop=_Rows(rows),
                logits_processor=noise,
                **told,
            )

    def _encode(self, problem: Problem) -> list[int]:
        prompt = problem.prompt.strip() if self._settings.strip_prompts else problem.prompt
        room = max(self._positions - self._settings.max_tokens, self._positions // 2)
        return encode_prompt(self._tokenizer, prompt, max_tokens=room if self._settings.truncate_prompts else None)


@dataclass
class _Row:
    """One completion while it is written."""

    decoder: IncrementalDecoder
    stop: Sequence[str]
    room: int
    ends: set[int]
    text: str = ""
    tokens: int = 0
    done: bool = False
    stopped: bool = False  # by a stop token, which is not part of the text

    def take(self, token_id: int) -> None:
        """The next token; nothing happens once the completion is done."""
        if self.done:
            return
        self.tokens += 1
        if token_id in self.ends:
            self.done = True
            return
        self._add(self.decoder.step(token_id))
        self.done = self.done or self.tokens >= self.room

    def finish(self) -> str:
        """The completion."""
        if not self.stopped:
            self._add(self.decoder.flush())
        return self.text

    def _add(self, new: str) -> None:
        longest = max(map(len, self.stop), default=0)
        before = max(0, len(self.text) - longest)  # no stop token was in the text so far
        self.text += new
        place = find_stop(self.text[before:], self.stop)
        if place is not None:
            self.text, self.done, self.stopped = self.text[: before + place], True, True


@dataclass
class _Rows(StoppingCriteria):
    """Shows each row its newest token, and says which rows are done."""

    rows: list[_Row] = field(default_factory=list)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """input_ids: (B, tokens so far) -> (B,) bool."""
        for row, token_id in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            row.take(token_id)
        return torch.tensor([row.done for row in self.rows], device=input_ids.device)
