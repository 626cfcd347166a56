"""Tokenizers of a few tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def tokenizer_with(added, *, special=True, bos=False, eos="<end>"):
    """A byte-level tokenizer without merges, with control tokens as a family would have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<start>", special=True), AddedToken(eos, special=True)])
    bpe.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    if bos:
        start = ("<start>", bpe.token_to_id("<start>"))
        bpe.post_processor = processors.TemplateProcessing("<start> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<start>" if bos else None, eos_token=eos)
