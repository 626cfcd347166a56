"""Small tokenizers in the shapes that families publish theirs in, trained on a few lines of code."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CodeLlamaTokenizer

from moe_codegen.sentinels import SPELLINGS
from tests.tiny import TEXT

FAMILIES = ["codellama", "codellama-resaved", "codegemma", "starcoder2", "qwen-coder", "deepseek-coder"]
_PLACE = TemporaryDirectory()
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")  # noqa: RUF001 (its own bars)


@cache
def published(family: str) -> Path:
    """A folder with the tokenizer of one of `FAMILIES`."""
    folder = Path(_PLACE.name, family)
    folder.mkdir()
    if family == "codellama-resaved":  # by transformers 5, which makes the blank that comes first in another way
        CodeLlamaTokenizer.from_pretrained(published("codellama")).save_pretrained(folder)
        return folder
    tokenizer, tokenizer_class, start, end = {
        "codellama": _codellama,
        "codegemma": _codegemma,
        "starcoder2": _starcoder2,
        "qwen-coder": _qwen_coder,
        "deepseek-coder": _deepseek_coder,
    }[family]()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "bos_token": start, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _codellama():
    sentinels = [token for token in SPELLINGS["codellama"] if token]
    tokenizer = _of_blanks(["<unk>", "<s>", "</s>"], sentinels)
    tokenizer.add_special_tokens(sentinels)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer, "CodeLlamaTokenizer", "<s>", "</s>"


def _codegemma():
    sentinels = list(SPELLINGS["qwen-coder"][:3])
    tokenizer = _of_blanks(["<pad>", "<eos>", "<bos>", "<unk>"], sentinels)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sentinels])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer, "GemmaTokenizer", "<bos>", "<eos>"


def _starcoder2():
    tokenizer = _of_bytes([pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)])
    tokenizer.add_special_tokens(["<|endoftext|>", *SPELLINGS["starcoder"][:3]])
    return tokenizer, "GPT2Tokenizer", None, "<|endoftext|>"


def _qwen_coder():
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = _of_bytes([pre_tokenizers.Split(Regex(words), "isolated"), _byte_level(use_regex=False)])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in SPELLINGS["qwen-coder"][:3]])
    return tokenizer, "Qwen2Tokenizer", None, "<|endoftext|>"


def _deepseek_coder():
    """Its folder names the class of another kind of tokenizer."""
    words = [pre_tokenizers.Split(Regex(each), "isolated") for each in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+")]
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = _of_bytes([*words, digits, _byte_level(use_regex=False)])
    tokenizer.add_special_tokens(list(_DEEPSEEK))
    tokenizer.add_tokens([AddedToken(token) for token in SPELLINGS["deepseek-coder"][:3]])
    return tokenizer, "LlamaTokenizerFast", *_DEEPSEEK


def _of_blanks(special, sentinels):
    """As SentencePiece models are converted: a blank is ▁, a letter that is not known its bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁\n]*|\n"), "isolated")
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*special, *spelled, *sentinels], show_progress=False)
    tokenizer.train_from_iterator([TEXT.replace("\n", "")], trainer)  # Llama's end of line is a byte
    tokenizer = Tokenizer(tokenizer.model)
    tokenizer.add_special_tokens(special)
    return tokenizer


def _of_bytes(parts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
