"""Bytes of comment in each file of a batch, from the positions of the markers alone.

No lexer: a marker inside a string counts as a comment, and Python's triple-quoted strings all count as docstrings.
On real code that is close enough for a filter at 1% and 80%, and many times faster.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from moe_codegen.languages import LANGUAGES, Language

Spans = tuple[np.ndarray, np.ndarray]  # starts and ends, ascending and disjoint


def marker_bytes(languages: Iterable[str | None]) -> bytes:
    """The bytes whose positions `comment_bytes` needs for these languages: one of each marker."""
    return bytes({_anchor(marker) for language in _commented(languages) for marker in _markers(language)})


def comment_bytes(
    data_N: np.ndarray, offsets: np.ndarray, landmarks: Mapping[int, np.ndarray], languages: list[str | None]
) -> np.ndarray:
    """Bytes inside comments, one count a file (F,); NaN for a language whose comments are not known.

    `landmarks` gives the positions of the line ends and of each of `marker_bytes(languages)`.
    """
    names = np.array([name or "" for name in languages], dtype=object)
    counts = np.full(len(names), np.nan)
    for language in _commented(languages):
        spans = _line_comments(data_N, offsets, language, landmarks)
        for opening, closing in language.block_comments:
            blocks = _outside(_blocks(data_N, offsets, opening, closing, landmarks), spans)
            spans = _merged(_outside(spans, blocks), blocks)
        starts, ends = spans
        files = np.searchsorted(offsets, starts, side="right") - 1
        lengths = np.minimum(ends, offsets[files + 1]) - starts
        found = np.bincount(files, weights=lengths, minlength=len(names))
        mine = names == language.name
        counts[mine] = found[mine]
    return counts


def _commented(languages: Iterable[str | None]) -> list[Language]:
    known = (LANGUAGES.get(name or "") for name in sorted({name or "" for name in languages}))
    return [language for language in known if language and list(_markers(language))]


def _markers(language: Language) -> list[bytes]:
    return [*language.line_comments, *(marker for pair in language.block_comments for marker in pair)]


def _anchor(marker: bytes) -> int:
    """The byte of a marker to search for: a slash where it has one, since then all markers of C share one search."""
    return ord("/") if b"/" in marker else marker[0]


def _find(data_N: np.ndarray, marker: bytes, landmarks: Mapping[int, np.ndarray]) -> np.ndarray:
    """Every position of `marker`, overlapping ones included."""
    anchor = marker.index(_anchor(marker))
    at = landmarks[marker[anchor]] - anchor
    for shift, byte in enumerate(marker):
        if shift != anchor:
            at = at[(at >= 0) & (at + shift < len(data_N))]
            at = at[data_N[at + shift] == byte]
    return at


def _starting_with(data_N: np.ndarray, at: np.ndarray, marker: bytes) -> np.ndarray:
    """Those positions from which the bytes are those of `marker`."""
    at = at[at + len(marker) <= len(data_N)]
    for shift, byte in enumerate(marker):
        at = at[data_N[at + shift] == byte]
    return at


def _line_comments(
    data_N: np.ndarray, offsets: np.ndarray, language: Language, landmarks: Mapping[int, np.ndarray]
) -> Spans:
    """From the first marker of a line to its end; `://` is an address and no comment."""
    newlines = landmarks[ord("\n")]
    found = [newlines[:0], *(_find(data_N, marker, landmarks) for marker in language.line_comments)]
    if language.column_one_comments:
        first_N = np.union1d(newlines + 1, offsets[:-1])
        found += [_starting_with(data_N, first_N, marker) for marker in language.column_one_comments]
    starts = np.sort(np.concatenate(found))
    if b"//" in language.line_comments:
        starts = starts[(starts == 0) | (data_N[starts - 1] != ord(":"))]
    line = np.searchsorted(newlines, starts)
    first = np.diff(line, prepend=-1) > 0
    return starts[first], np.append(newlines, len(data_N))[line[first]]


def _blocks(
    data_N: np.ndarray, offsets: np.ndarray, opening: bytes, closing: bytes, landmarks: Mapping[int, np.ndarray]
) -> Spans:
    """From each opening to the next closing of the same file; an opening inside a block is text."""
    starts = _find(data_N, opening, landmarks)
    if opening == closing:  # alternately opening and closing, counted anew in each file
        starts = starts[np.diff(starts, prepend=-len(opening)) >= len(opening)]
        file = np.searchsorted(offsets, starts, side="right")
        rank = np.arange(len(starts)) - np.searchsorted(file, file)
        paired = np.flatnonzero((rank % 2 == 0) & (np.append(file[1:], -1) == file)) if len(starts) else starts
        return starts[paired], starts[np.minimum(paired + 1, len(starts) - 1)] + len(closing)
    closings = np.append(_find(data_N, closing, landmarks), len(data_N))
    nearest = np.searchsorted(closings, starts + len(opening))
    closed = closings[nearest] < offsets[np.searchsorted(offsets, starts, side="right")]
    starts, nearest = starts[closed], nearest[closed]
    first = np.diff(nearest, prepend=-1) > 0
    return starts[first], closings[nearest[first]] + len(closing)


def _outside(spans: Spans, others: Spans) -> Spans:
    """Those spans that do not start inside one of the others that started before."""
    starts, ends = spans
    if not len(others[0]):
        return spans
    before = np.searchsorted(others[0], starts) - 1
    free = (before < 0) | (others[1][np.maximum(before, 0)] <= starts)
    return starts[free], ends[free]


def _merged(one: Spans, two: Spans) -> Spans:
    starts, ends = (np.concatenate(pair) for pair in zip(one, two, strict=True))
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order]
