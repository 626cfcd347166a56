"""transformers' `generate`, told what to do by its caller alone."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria


def generate_plainly(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: StoppingCriteria,
    **settings: Any,
) -> Any:
    """What `model.generate` answers to `prompts`, with a cache and, if `settings` do not sample, greedily.

    The checkpoint's own generation settings (beams, penalties, kinds of cache) are left aside but for its ends of text.

    Args:
        model, tokenizer: as `load_model` gives them.
        prompts: token ids; the shorter ones are padded in front.
        max_new_tokens: at most so many after each.
        stop: asked after each token which rows are done, besides those with an end of text.
        settings: any other argument of `generate`.
    """
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    longest = max(map(len, prompts))
    ids = [[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    # Beside an argument `generation_config` the model's would still fill in whatever that leaves unsaid.
    stored = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=stored.eos_token_id)
    try:
        return model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=max_new_tokens,
            stopping_criteria=[stop],
            pad_token_id=padding,
            use_cache=True,
            **{"do_sample": False, **settings},
        )
    finally:
        model.generation_config = stored
