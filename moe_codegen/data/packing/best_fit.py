"""Best-fit-decreasing bin packing: documents into sequences with hardly any padding.

A document longer than a sequence comes as several pieces; nothing else is ever cut. Suffix: P pieces.
"""

import numpy as np


def best_fit(lengths_P: np.ndarray, capacity: int) -> np.ndarray:
    """The sequence of each piece: the longest pieces first, each into the fullest sequence that still has room.

    Sequences with the same room are kept in lists, and the rooms that occur as the bits of one number, so that a piece
    costs a shift and not a search. Raises `ValueError` for a piece longer than `capacity`.
    """
    if len(lengths_P) and int(lengths_P.max()) > capacity:
        raise ValueError(f"a piece of {int(lengths_P.max())} tokens does not fit a sequence of {capacity}")
    sequence_P = np.empty(len(lengths_P), np.int64)
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    made = 0
    for piece in np.argsort(-lengths_P, kind="stable").tolist():
        length = int(lengths_P[piece])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, sequence = capacity, made
            made += 1
        sequence_P[piece] = sequence
        left = room - length
        if left:
            by_room[left].append(sequence)
            rooms |= 1 << left
    return sequence_P
