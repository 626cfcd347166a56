"""A plain training loop for the demo's dense model, fill-in-the-middle (arXiv 2207.14255) included.

Dimensions: N windows, S tokens each.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from moe_codegen.demo.corpus import Document
from moe_codegen.demo.dense import END, MIDDLE, POSITIONS, PREFIX, SUFFIX
from moe_codegen_kernels.cpu.compiled import torch_is_native

FIM_RATE = 0.3
PIECE_CHARACTERS = 560  # about 200 tokens: a piece and its sentinels fit a window
MATRIX_LEARNING_RATE = 0.02  # Muon's, whose steps have a norm of their own
LEARNING_RATE = 4e-3  # AdamW's, for embeddings, norms and biases
WARM_UP = 0.1  # of the whole
BATCH = 8  # windows


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands.

    Attributes:
        step: steps done.
        share: of the whole that is done, 0 to 1.
        loss: nats per token, a running mean.
        tokens_per_second: since the start.
        seconds_left: at this pace.
    """

    step: int
    share: float
    loss: float
    tokens_per_second: float
    seconds_left: float


def tokenise(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, seed: int = 0, window: int = POSITIONS
) -> torch.Tensor:
    """The documents one after another, part of their pieces rearranged for fill-in-the-middle, cut into windows.

    Returns:
        (N, S) int64, S = `window`.
    """
    rng = random.Random(seed)
    end, prefix, middle, suffix = tokenizer.convert_tokens_to_ids([END, PREFIX, MIDDLE, SUFFIX])
    stream: list[int] = []
    for document in rng.sample(documents, len(documents)):
        for piece in _pieces(document.text):
            if rng.random() < FIM_RATE:
                first, second = sorted(rng.choices(range(len(piece) + 1), k=2))
                parts = (piece[:first], piece[second:], piece[first:second])
                before, after, between = (_ids(tokenizer, part) for part in parts)
                stream += [prefix, *before, suffix, *after, middle, *between, end]
            else:
                stream += _ids(tokenizer, piece)
        stream.append(end)
    count = len(stream) // window
    return torch.tensor(stream[: count * window]).view(count, window)


def train(
    model: PreTrainedModel,
    windows_NS: torch.Tensor,
    *,
    steps: int,
    minutes: float | None = None,
    seed: int = 0,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
) -> float:
    """Train `model` in place: warm-up, then a cosine to zero; the same numbers for the same seed and threads.

    The matrices inside the layers are trained with Muon (arXiv 2502.16982), which learns more from few steps; the rest
    with AdamW. torch's Muon multiplies in bfloat16, so a processor that is slow at that takes AdamW for everything.

    Args:
        windows_NS: (N, S) token ids.
        steps: optimiser steps of 8 windows.
        minutes: stop by the clock instead; such a run is not reproducible.
        on_step: called after every step.

    Returns:
        The running mean of the loss at the end, nats per token.
    """
    optimisers = _optimisers(model)
    order = _batches(len(windows_NS), torch.Generator().manual_seed(seed))
    start, step, share, mean_loss = time.perf_counter(), 0, 0.0, math.nan
    model.train()
    while share < 1:
        for optimiser, peak in optimisers.items():
            optimiser.param_groups[0]["lr"] = peak * _schedule(share)
        ids = windows_NS[next(order)]
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        seconds = time.perf_counter() - start
        share = min(1.0, step / steps if minutes is None else seconds / (60 * minutes))
        mean_loss = loss.item() if step == 1 else mean_loss + (loss.item() - mean_loss) / min(step, 25)
        tokens = step * ids.numel()
        on_step(TrainingProgress(step, share, mean_loss, tokens / seconds, seconds * (1 / share - 1)))
    model.eval()
    return mean_loss


def _optimisers(model: PreTrainedModel) -> dict[torch.optim.Optimizer, float]:
    """The optimisers, each with its peak learning rate."""
    if not torch_is_native(torch.bfloat16):
        return {torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01): LEARNING_RATE}
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if ".h." in name and parameter.dim() == 2 else rest).append(parameter)
    return {
        torch.optim.Muon(matrices, weight_decay=0.01): MATRIX_LEARNING_RATE,
        torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01): LEARNING_RATE,
    }


def _schedule(share: float) -> float:
    """The factor on the learning rate: a linear warm-up, then a cosine to zero."""
    # The first step starts above zero, or it would be wasted.
    return min(1.0, (share + 0.005) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))


def _batches(count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    while True:
        for batch in torch.randperm(count, generator=generator).split(BATCH):
            if len(batch) == min(BATCH, count):
                yield batch


def _pieces(text: str) -> Iterator[str]:
    """The text cut at line ends into pieces of about one window."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += line
    yield piece


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    # Code that speaks of a sentinel must not become one.
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
