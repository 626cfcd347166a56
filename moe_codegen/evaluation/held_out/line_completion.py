"""Completing lines of held-out files: what follows the cut, with the text after it hidden (line) or shown (fill)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rapidfuzz.distance import Levenshtein
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from moe_codegen.errors import ConfigError
from moe_codegen.evaluation.held_out.line_places import Place
from moe_codegen.evaluation.syntax import can_parse, parses
from moe_codegen.generation import encode_prompt, find_sentinels, generate_plainly
from moe_codegen.generation.completion import end_ids
from moe_codegen.generation.decoding import IncrementalDecoder
from moe_codegen.metrics.loss import told_languages

Task = Literal["line", "fill"]


@dataclass(frozen=True)
class LineCompletion:
    """What a model wrote at one place.

    Attributes:
        document, repository, language: of the place.
        offset: of the cut, in characters.
        task: "line" with the text before the cut, "fill" also with the text after the line.
        expected, predicted: the rest of the line as it stood, and as the model has it.
        exact: whether they are equal but for blanks at their ends.
        similarity: `1 - Levenshtein distance / length of the longer`, of the same.
        parses: whether the file with the model's line in it parses; None where it does not parse as it stood, or
            nothing parses its language.
    """

    document: str
    repository: str
    language: str
    offset: int
    task: Task
    expected: str
    predicted: str
    exact: bool
    similarity: float
    parses: bool | None


def tasks_for(tokenizer: PreTrainedTokenizerBase) -> list[Task]:
    """Completing lines, and filling gaps where the tokenizer has sentinels for it."""
    return ["line", "fill"] if find_sentinels(tokenizer) else ["line"]


def complete_places(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    places: Sequence[Place],
    task: Task,
    *,
    context: int,
    max_new_tokens: int,
    batch_size: int,
    on_places: Callable[[int], None] = lambda places: None,
) -> list[LineCompletion]:
    """Greedy completions of all places, in their order.

    Args:
        context: tokens of prompt at most, nearest to the cut; fewer where the model's positions end before.
        max_new_tokens: at which a line is given up.
        batch_size: places completed together, those of similar length.
        on_places: called with the number of places after each batch.

    Raises:
        ConfigError: positions that leave no room for a prompt.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or context + max_new_tokens
    room = min(context, positions - max_new_tokens)
    if room < 8:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens} of {positions} positions leaves no room for a prompt; lower it"
        )
    prompts = [encode_prompt(tokenizer, p.before, p.after if task == "fill" else None, room) for p in places]
    order = sorted(range(len(places)), key=lambda place: -len(prompts[place]))
    lines: dict[int, str] = {}
    ends = _Ends(model, tokenizer)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        told = told_languages(model, [places[place].document.language for place in batch])
        answers = _greedy(model, tokenizer, [prompts[place] for place in batch], ends, max_new_tokens, told)
        lines |= zip(batch, answers, strict=True)
        on_places(len(batch))
    return [judge(place, task, lines[number]) for number, place in enumerate(places)]


def judge(place: Place, task: Task, predicted: str) -> LineCompletion:
    """Compare the rest of a line with what stood there."""
    document, expected = place.document, place.missing
    tidy = expected.strip(), predicted.strip()
    checked = can_parse(document.language) and parses(document.text, document.language)
    return LineCompletion(
        document=document.name,
        repository=document.repository,
        language=document.language,
        offset=place.offset,
        task=task,
        expected=expected,
        predicted=predicted,
        exact=tidy[0] == tidy[1],
        similarity=Levenshtein.normalized_similarity(*tidy),
        parses=parses(place.before + predicted + place.after, document.language) if checked else None,
    )


class _Ends(StoppingCriteria):
    """Ends each row at a token with a line end in it, or one that ends the text."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.texts = end_ids(model, tokenizer, suffix="") | set(tokenizer.all_special_ids)
        vocabulary = max(model.config.vocab_size, len(tokenizer))
        pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        lines = {token for token, piece in enumerate(pieces) if "\n" in piece}
        self.is_end_V = torch.zeros(vocabulary, dtype=torch.bool, device=model.device)
        self.is_end_V[sorted(lines | self.texts)] = True

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return self.is_end_V[input_ids[:, -1]]


def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    ends: _Ends,
    max_new_tokens: int,
    told: Mapping[str, torch.Tensor],
) -> list[str]:
    """The first line that the model writes after each prompt."""
    with torch.inference_mode():
        output = generate_plainly(model, tokenizer, prompts, max_new_tokens=max_new_tokens, stop=ends, **told)
    answers = []
    for prompt, row in zip(prompts, output[:, max(map(len, prompts)) :].tolist(), strict=True):
        end = next((place for place, token in enumerate(row) if token in ends.texts), len(row))
        decoder = IncrementalDecoder(tokenizer, prompt)
        text = "".join(map(decoder.step, row[:end])) + decoder.flush()
        answers.append(text.partition("\n")[0])
    return answers
