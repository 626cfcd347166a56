"""Files as sets of hashed 5-grams of words, for a whole batch at once.

A word is a run of ASCII letters, digits, underscores and bytes over 127; what lies between words, indentation above
all, has no part in it. Suffixes: N bytes of the batch, W words, G shingles.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from moe_codegen.data.rows.batch import text_buffer

NGRAM = 5  # words
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)  # the first `count` bytes of a word of 8
_MIX, _STEP, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(32)
_LONGEST = 64  # bytes of a word that are hashed: beyond lie only encoded data
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Shingles:
    """The sets of some files: that of file `i` is `hashes_G[offsets[i]:offsets[i + 1]]`, sorted, each hash once."""

    hashes_G: np.ndarray  # uint32
    offsets: np.ndarray
    words: np.ndarray  # words a file, those of no shingle included

    def of(self, file: int) -> np.ndarray:
        """The set of file `file`."""
        return self.hashes_G[self.offsets[file] : self.offsets[file + 1]]


def shingles(column: pa.Array) -> Shingles:
    """The shingles of a binary column without nulls; a file of less than `NGRAM` words has none.

    Works in blocks of a few megabytes: the arrays of a block take about thirty times its bytes.
    """
    _, offsets = text_buffer(column)
    blocks = np.searchsorted(offsets, np.arange(0, max(int(offsets[-1]), 1), _BLOCK_BYTES), side="right") - 1
    bounds = [0, *np.unique(blocks[blocks > 0]).tolist(), len(column)]
    parts = [_block(*text_buffer(column.slice(a, b - a))) for a, b in pairwise(bounds)]
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    hashes_G, words = (np.concatenate([getattr(part, name) for part in parts]) for name in ("hashes_G", "words"))
    return Shingles(hashes_G, np.concatenate([[0], np.cumsum(sizes)]), words)


def _block(data_N: np.ndarray, offsets: np.ndarray) -> Shingles:
    # One blank before; eight after, so that any word can be read by eights.
    padded = np.concatenate([np.zeros(1, np.uint8), data_N, np.zeros(8, np.uint8)])
    starts_W, ends_W = _words(padded, offsets)
    hashes_W = _hash_words(padded, starts_W, ends_W)
    count = max(len(hashes_W) - NGRAM + 1, 0)
    grams = hashes_W[:count].copy()
    for place in range(1, NGRAM):
        grams *= _STEP
        grams += hashes_W[place : place + count]
    first = np.searchsorted(starts_W, offsets)
    words = np.diff(first)
    within = np.ones(count, bool)
    crossing = (first[1:, None] - np.arange(1, NGRAM)).ravel()  # they begin in one file and end in another
    within[crossing[(crossing >= 0) & (crossing < count)]] = False
    grams_G = (_mix(grams) >> _HALF).astype(np.uint32)[within]
    lengths = np.maximum(words - NGRAM + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for start, end in pairwise(offsets.tolist()):
        grams_G[start:end].sort()
    once = np.ones(len(grams_G), bool)
    once[1:] = grams_G[1:] != grams_G[:-1]
    once[offsets[:-1][lengths > 0]] = True
    return Shingles(grams_G[once], np.concatenate([[0], np.cumsum(once)])[offsets], words)


def _words(padded: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each word starts and ends in the data; a word ends with its file."""
    inside = ((padded | 0x20) - np.uint8(ord("a"))) < 26  # unsigned arithmetic wraps: one comparison tests a range
    inside |= (padded - np.uint8(ord("0"))) < 10
    inside |= padded >= 128
    inside |= padded == ord("_")
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    cut = np.unique(offsets[1:-1])
    cut = cut[inside[cut] & inside[cut + 1]]
    if len(cut):
        edges = np.sort(np.concatenate([edges, cut, cut]), kind="stable")
    return edges[0::2], edges[1::2]


def _hash_words(padded: np.ndarray, starts_W: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each word's first `_LONGEST` bytes and its length, eight bytes at a time."""
    eights = np.ndarray((len(padded) - 8,), "<u8", padded.data, 1, (1,))
    lengths = ends_W - starts_W
    hashes = _mix((eights[starts_W] & _MASKS.take(lengths, mode="clip")) + lengths.astype(np.uint64) * _STEP)
    longer = np.flatnonzero(lengths > 8)
    for done in range(8, _LONGEST, 8):
        if not len(longer):
            break
        rest = lengths[longer] - done
        hashes[longer] = _mix(hashes[longer] ^ (eights[starts_W[longer] + done] & _MASKS.take(rest, mode="clip")))
        longer = longer[rest > 8]
    return hashes


def _mix(values: np.ndarray) -> np.ndarray:
    values = values * _MIX
    values ^= values >> _HALF
    values *= _STEP
    values ^= values >> _HALF
    return values


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union of two sorted arrays without repetitions; 0 where either is empty."""
    if not len(one) or not len(two):
        return 0.0
    common = len(np.intersect1d(one, two, assume_unique=True))
    return common / (len(one) + len(two) - common)
