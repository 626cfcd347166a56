"""What the filters look at, measured on a whole batch of files at once.

The files of a batch lie end to end in one buffer; a file's bytes are `data_N[offsets[i]:offsets[i + 1]]`. Nothing here
makes a Python object for a line or a character: whole-buffer comparisons run at memory speed.
Suffixes: N bytes of the batch, F files, L lines.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from moe_codegen.data.filtering.comments import comment_bytes, marker_bytes
from moe_codegen.data.rows.batch import text_buffer

RUN = 256  # bytes: shorter runs of encoded data are not counted
_STRIDE = 64  # one word of eight bytes is looked at in so many: a run of RUN bytes covers three of them wholly
_BLANK = b" \t\r\n"
_ALNUM = bytes(byte for byte in range(128) if chr(byte).isalnum())
_ENCODINGS = {
    # Base64, line ends included; then lists of numbers, hexadecimal and escapes, whose white space does not count.
    kind: bytes(0x61 if byte in members else 0x20 for byte in range(256))
    for kind, members in (("base64", _ALNUM + b"+/=\r\n"), ("numbers", b"0123456789abcdefABCDEFxXuU\\," + _BLANK))
}
_ALL_IN = np.frombuffer(b"a" * 8, np.uint64)[0]


@dataclass(frozen=True)
class Measures:
    """One value a file: lengths in characters, `size` and `encoded_run` in bytes, fractions between 0 and 1."""

    size: np.ndarray
    lines: np.ndarray
    avg_line_length: np.ndarray
    max_line_length: np.ndarray
    alphanum_fraction: np.ndarray
    comment_fraction: np.ndarray
    encoded_run: np.ndarray
    encoded_fraction: np.ndarray


def measure(column: pa.Array, languages: list[str | None]) -> Measures:
    """Measure every file of a binary column of valid UTF-8 without nulls and without empty files."""
    data_N, offsets = text_buffer(column)
    size = np.diff(offsets)
    landmarks, above = _landmarks(data_N, marker_bytes(languages))
    newlines = landmarks[ord("\n")]
    starts_L, ends_L, first = _lines(newlines, offsets)
    lines = np.diff(np.append(first, len(ends_L)))
    lengths_L, characters, alnum = ends_L - starts_L, size, _ascii_alnum(data_N, offsets)
    if len(above):
        # Only the first byte of a character is counted; the bytes above 127 alone are still whole characters.
        continued = above[data_N[above] < 0xC0]
        line, file = np.searchsorted(ends_L, continued, "right"), np.searchsorted(offsets, continued, "right") - 1
        lengths_L = lengths_L - np.bincount(line, minlength=len(ends_L))
        characters = size - np.bincount(file, minlength=len(size))
        alnum = alnum + _other_alnum(data_N, above, offsets)
    run, encoded = _encoded(data_N, offsets)
    return Measures(
        size=size,
        lines=lines,
        avg_line_length=(characters - (lines - 1)) / lines,
        max_line_length=np.maximum.reduceat(lengths_L, first),
        alphanum_fraction=alnum / characters,
        comment_fraction=comment_bytes(data_N, offsets, landmarks, languages) / size,
        encoded_run=run,
        encoded_fraction=encoded / size,
    )


def _landmarks(data_N: np.ndarray, markers: bytes) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The positions of line ends and of each byte of `markers`, and those of bytes over 127, in one search."""
    sought = b"\n" + markers
    wanted = data_N > 0x7F
    for byte in sought:
        wanted |= data_N == byte
    at = np.flatnonzero(wanted)
    found = data_N[at]
    return {byte: at[found == byte] for byte in sought}, at[found > 0x7F]


def _lines(newlines: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and end of every line, and the number of each file's first; a last newline begins one more, empty, line."""
    ends_L = np.sort(np.concatenate([newlines, offsets[1:]]), kind="stable")
    first = np.searchsorted(newlines, offsets[:-1]) + np.arange(len(offsets) - 1)
    starts_L = np.empty_like(ends_L)
    starts_L[1:] = ends_L[:-1] + 1
    starts_L[first] = offsets[:-1]
    return starts_L, ends_L, first


def _ascii_alnum(data_N: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """ASCII letters and digits of each file; unsigned arithmetic wraps, so that one comparison tests a range."""
    alnum_N = ((data_N | 0x20) - np.uint8(ord("a"))) < 26
    alnum_N |= (data_N - np.uint8(ord("0"))) < 10
    bounds = offsets.tolist()
    return np.array([np.count_nonzero(alnum_N[a:b]) for a, b in pairwise(bounds)], np.int64)


def _other_alnum(data_N: np.ndarray, above: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Letters and digits outside ASCII of each file; `above` are the positions of its bytes over 127."""
    text, bounds = data_N[above].tobytes(), np.searchsorted(above, offsets)
    counts = np.zeros(len(offsets) - 1, np.int64)
    for file in np.flatnonzero(np.diff(bounds)):
        counts[file] = sum(map(str.isalnum, text[bounds[file] : bounds[file + 1]].decode()))
    return counts


def _encoded(data_N: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the longest run of encoded data in each file, and of all its runs of at least `RUN` bytes.

    One word in eight is sampled; only a file with three sampled words in a row,
    and all bytes between them, inside one encoding is read through.
    """
    longest, total = (np.zeros(len(offsets) - 1, np.int64) for _ in range(2))
    sampled = data_N[: len(data_N) // _STRIDE * _STRIDE].view(np.uint64)[:: _STRIDE // 8].tobytes()
    letters = ((np.frombuffer(sampled, np.uint8) | 0x20) - np.uint8(ord("0")) < 75).view(np.uint64) != 0
    for kind, members in _ENCODINGS.items():
        # A rule of slashes or a deep indentation has no letter or digit in it.
        inside = (np.frombuffer(sampled.translate(members), np.uint64) == _ALL_IN) & letters
        suspects = np.flatnonzero(inside[2:] & inside[1:-1] & inside[:-2]) * _STRIDE
        between = data_N[suspects[:, None] + np.arange(2 * _STRIDE)]
        suspects = suspects[(np.frombuffer(members, np.uint8)[between] == ord("a")).all(axis=1)]
        for file in np.unique(np.searchsorted(offsets, suspects, side="right") - 1):
            text = data_N[offsets[file] : offsets[file + 1]].tobytes()
            runs = _runs(text.translate(members, _BLANK if kind == "numbers" else b""))
            longest[file] = max([*runs, longest[file]])
            total[file] = max(sum(runs), total[file])
    return longest, total


def _runs(marked: bytes) -> list[int]:
    """Lengths of the runs of `a` of at least `RUN`."""
    runs, start = [], marked.find(b"a" * RUN)
    while start >= 0:
        end = marked.find(b" ", start)
        end = end if end >= 0 else len(marked)
        runs.append(end - start)
        start = marked.find(b"a" * RUN, end)
    return runs
