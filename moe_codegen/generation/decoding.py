"""Ids to text while they arrive, and where to stop: the two reasons to hold text back for a moment."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what an incomplete UTF-8 sequence decodes to
LONGEST_CHARACTER = 4  # bytes, so at most that many tokens


class IncrementalDecoder:
    """Gives each token the text it adds; a character of several tokens comes with its last one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids)
        self._shown = self._decode()
        self._held = 0

    def step(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        self._ids.append(token_id)
        self._held += 1
        if self._decode().endswith(UNFINISHED) and self._held < LONGEST_CHARACTER:
            return ""
        return self.flush()

    def flush(self) -> str:
        """What is still held back, complete or not."""
        text = self._decode()[len(self._shown) :]
        if text:  # what begins a text may lose its blank, so some text has to stand before the next token
            self._ids = self._ids[-self._held :]
        self._shown, self._held = self._decode(), 0
        return text

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where in `text` the first of the `stop` strings begins; None if none occurs."""
    places = [place for each in stop if (place := text.find(each)) >= 0]
    return min(places, default=None)


def settled_length(text: str, stop: Sequence[str]) -> int:
    """How much of `text` can be shown: all but an end that may grow into one of the `stop` strings."""
    longest = max((len(each) for each in stop), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(each.startswith(text[start:]) for each in stop):
            return start
    return len(text)
