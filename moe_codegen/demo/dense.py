"""The demo's dense model: SantaCoder's architecture and sentinels, small enough to train while one watches."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM, PreTrainedTokenizerFast

END, PREFIX, MIDDLE, SUFFIX, PAD = SENTINELS = (
    "<|endoftext|>",
    "<fim-prefix>",
    "<fim-middle>",
    "<fim-suffix>",
    "<fim-pad>",
)
VOCABULARY = 2048
POSITIONS = 256


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocabulary` tokens, SantaCoder's sentinels among them, learnt from `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SENTINELS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=POSITIONS
    )


def small_santacoder(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> GPTBigCodeForCausalLM:
    """An untrained multi-query GPT-BigCode of about 2 million parameters for `tokenizer`."""
    config = GPTBigCodeConfig(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=192,
        n_layer=4,
        n_head=3,
        n_inner=768,
        multi_query=True,
        activation_function="gelu_pytorch_tanh",
        # A model that sees its data a few times has little use for dropout.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPTBigCodeForCausalLM(config)
