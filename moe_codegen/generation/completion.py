"""Complete code: transformers' `generate`, watched token by token."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from moe_codegen.errors import ConfigError
from moe_codegen.generation.decoding import IncrementalDecoder, find_stop, settled_length
from moe_codegen.generation.plain import generate_plainly
from moe_codegen.generation.prompt import encode_prompt, find_sentinels
from moe_codegen.modeling.modeling import CACHE
from moe_codegen.moe import RoutingRecorder

LEAST_TEMPERATURE = 1e-30  # logits divided by less may leave float32's range


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: in the vocabulary.
        text: what it adds to the text; empty while a character of several tokens is unfinished.
        experts: for each sparse layer, the experts that took this token, the strongest first; None in a dense model.
    """

    id: int
    text: str
    experts: list[list[int]] | None = None


@dataclass(frozen=True)
class Completion:
    """What was generated, and how fast.

    Attributes:
        prompt_ids: the prompt as the model saw it, sentinels included.
        tokens: the generated tokens, without an end of text.
        finish_reason: "end" the model ended its text, "stop" a stop string came, "length" the limit was reached.
        seconds_to_first_token: from the call to the first token: the prompt's pass.
        tokens_per_second: of the tokens after the first; None if there was only one.
    """

    prompt_ids: list[int]
    tokens: list[Token]
    finish_reason: Literal["end", "stop", "length"]
    seconds_to_first_token: float
    tokens_per_second: float | None

    @property
    def text(self) -> str:
        """The generated text, up to the stop string if there was one."""
        return "".join(token.text for token in self.tokens)

    @property
    def token_ids(self) -> list[int]:
        """The ids of the generated tokens."""
        return [token.id for token in self.tokens]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    suffix: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    language: str | None = None,
    on_token: Callable[[Token], None] = lambda token: None,
) -> Completion:
    """Continue `prompt`, or with `suffix` write what stands between the two.

    Of the checkpoint's own generation settings only the ends of text count.

    Args:
        model, tokenizer: as `load_model` gives them.
        max_new_tokens: at most so many; fewer where the model's positions end before.
        temperature: 0 takes the likeliest token each time; above, tokens are sampled.
        top_p: sample from the smallest set of tokens with this much probability (arXiv 1904.09751).
        seed: of the sampling; the caller's random state is left as it was.
        stop: strings that end the text and are not part of it.
        language: of the text, for a mixture that routes by language.
        on_token: called with each token as soon as its text cannot change any more. In a mixture that is when the
            token has itself gone through the model, one step later, since only then its experts are known.

    Raises:
        ConfigError: settings that cannot hold, a language the model is not told, a prompt longer than the model's
            positions, or no sentinels.
    """
    _check(max_new_tokens, temperature, top_p, seed, stop)
    prompt_ids = encode_prompt(tokenizer, prompt, suffix)
    room, told = _room(model, prompt_ids), _told(model, language)
    sampling: dict[str, Any] = (
        dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0) if temperature else {}
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with RoutingRecorder(model) as recorder, torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        watcher = _Watcher(
            IncrementalDecoder(tokenizer, prompt_ids), recorder, end_ids(model, tokenizer, suffix), stop, on_token
        )
        output = generate_plainly(
            model,
            tokenizer,
            [prompt_ids],
            max_new_tokens=min(max_new_tokens, room),
            stop=watcher,
            return_dict_in_generate=True,
            **sampling,
            **told,
        )
        if watcher.lacks_routing:
            # The last token has not gone through the model: nothing came after it.
            last = torch.tensor([[watcher.tokens[-1].id]], device=model.device)
            model(input_ids=last, use_cache=True, **{CACHE: output[CACHE]}, **told)
        watcher.finish()
    return Completion(
        prompt_ids=prompt_ids,
        tokens=watcher.tokens,
        finish_reason=watcher.finish_reason or "length",
        seconds_to_first_token=watcher.first - watcher.start,
        tokens_per_second=watcher.pace,
    )


@dataclass
class _Watcher(StoppingCriteria):
    """Sees each token as `generate` makes it, and says when to stop.

    A stopping criterion and not a streamer: it sees the tokens before the decision to go on, in every release.
    """

    decoder: IncrementalDecoder
    recorder: RoutingRecorder
    end_ids: set[int]
    stop: Sequence[str]
    on_token: Callable[[Token], None]
    finish_reason: Literal["end", "stop"] | None = None
    tokens: list[Token] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    _count: int = 0
    _announced: int = 0  # tokens that `on_token` has had

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Take the newest token."""
        if self.finish_reason is None:
            self._take(int(input_ids[0, -1]))
        return torch.tensor([self.finish_reason is not None], device=input_ids.device)

    @property
    def pace(self) -> float | None:
        """Tokens per second after the first."""
        return (self._count - 1) / (self.last - self.first) if self._count > 1 else None

    @property
    def lacks_routing(self) -> bool:
        """Whether the last token's experts are still unknown."""
        return bool(self.tokens) and self.recorder.is_mixture and self.tokens[-1].experts is None

    def finish(self) -> None:
        """Announce what was held back."""
        self._route()
        if self.tokens and self.finish_reason != "stop":
            self.tokens[-1] = replace(self.tokens[-1], text=self.tokens[-1].text + self.decoder.flush())
        self._announce(len(self.tokens))

    def _take(self, token_id: int) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self._count += 1
        self._route()  # the pass that made this token took the one before it
        if token_id in self.end_ids:
            self.finish_reason = "end"
            return
        self.tokens.append(Token(token_id, self.decoder.step(token_id)))
        text = "".join(token.text for token in self.tokens[self._announced :])
        place = find_stop(text, self.stop)
        if place is not None:
            self.finish_reason = "stop"
            self._cut(place)
        else:
            self._announce_settled(settled_length(text, self.stop))

    def _route(self) -> None:
        if self.tokens and self.tokens[-1].experts is None and self.recorder.is_mixture:
            self.tokens[-1] = replace(self.tokens[-1], experts=self.recorder.last_LK)

    def _announce_settled(self, length: int) -> None:
        """Announce the tokens that lie within the first `length` characters not yet announced, and are routed."""
        end, position = self._announced, 0
        for number, token in enumerate(self.tokens[self._announced :], self._announced + 1):
            position += len(token.text)
            if position > length or (self.recorder.is_mixture and token.experts is None):
                break
            if token.text:  # one without may get the text of a character that stays unfinished
                end = number
        self._announce(end)

    def _announce(self, end: int) -> None:
        for token in self.tokens[self._announced : end]:
            self.on_token(token)
        self._announced = max(end, self._announced)

    def _cut(self, length: int) -> None:
        """Keep of the text not yet announced only the first `length` characters."""
        for index in range(self._announced, len(self.tokens)):
            token = self.tokens[index]
            self.tokens[index] = replace(token, text=token.text[:length])
            length -= len(self.tokens[index].text)


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise `ConfigError` where tokens cannot be drawn with these."""
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature < math.inf:
        raise ConfigError(
            f"temperature={temperature} must be 0, which takes the likeliest token each time, or finite and at least "
            f"{LEAST_TEMPERATURE}"
        )
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p} must lie above 0 and be at most 1")


def _check(max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: Sequence[str]) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
    check_sampling(temperature, top_p)
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"seed={seed} does not fit in 64 bits; give a smaller one")
    if isinstance(stop, str):
        raise ConfigError(f"stop={stop!r} is one string; give a list of strings")
    if "" in stop:
        raise ConfigError("an empty stop string would end every text before it begins; leave it out")


def _room(model: PreTrainedModel, prompt_ids: list[int]) -> int:
    """How many tokens the model's positions leave for the answer."""
    positions = getattr(model.config, "max_position_embeddings", None) or 2**31
    if len(prompt_ids) >= positions:
        raise ConfigError(
            f"the prompt is {len(prompt_ids)} tokens long and the model has {positions} positions for prompt and "
            "answer together; shorten the prompt"
        )
    return positions - len(prompt_ids)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suffix: str | None) -> set[int]:
    """The tokens that end a text: the checkpoint's and the tokenizer's, and in a gap any sentinel."""
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    sentinels = find_sentinels(tokenizer) if suffix is not None else None
    return {end for end in ends if end is not None} | (sentinels.ids if sentinels else set())


def _told(model: PreTrainedModel, language: str | None) -> dict[str, torch.Tensor]:
    """What a model that routes by language is told of it."""
    if language is None:
        return {}
    if getattr(model.config, "language_routing", "none") == "none":
        raise ConfigError(f"language={language!r}: this model does not route by language; leave it out")
    (place,) = model.config.language_ids([language])
    if place < 0:
        raise ConfigError(f"no expert is named after {language!r}; there are {', '.join(model.config.expert_names)}")
    return {"language_ids": torch.tensor([place], device=model.device)}
