"""MinHash signatures cut into bands: files that share a band are candidates for near-duplicates.

With B bands of R rows, two files of Jaccard similarity J share one with probability 1 - (1 - J^R)^B.
"""

from array import array
from functools import cache
from importlib import metadata

import numpy as np

from moe_codegen.data.deduplication.shingles import Shingles

_SEED = 1
_ODD = np.uint64(0x9E3779B97F4A7C15)


def algorithm() -> str:
    """What the signatures were made with: those of another version do not compare."""
    import rensa

    version = f"rensa {metadata.version('rensa')}, algorithm {rensa.RMinHash.ALGORITHM_VERSION}"
    return f"{version}, seed {_SEED}, shingles of 32 bits"


@cache
def best_banding(similarity: float, permutations: int) -> tuple[int, int]:
    """The bands and their rows that miss least above `similarity` and find least below it, for J spread evenly.

    Candidates are verified, so what is found below costs time alone: from 0.7 on the bands are those of 0.7, 25 of 10
    rows of 256 permutations, which find half of the pairs at 0.7 and all but 1% of those at 0.85.
    """
    threshold = min(similarity, 0.7)
    jaccard = (np.arange(1000) + 0.5) / 1000

    def wrong(count: int, rows: int) -> float:
        found = 1 - (1 - jaccard**rows) ** count
        return float(np.sum(np.where(jaccard < threshold, found, 1 - found)))

    possible = [(count, rows) for count in range(1, permutations + 1) for rows in range(1, permutations // count + 1)]
    return min(possible, key=lambda banding: wrong(*banding))


def bands(shingles: Shingles, permutations: int, count: int, rows: int) -> np.ndarray:
    """One 64-bit key for each file and band, (F, count); a file without shingles has keys that mean nothing.

    Raises `ValueError` where `count` bands of `rows` need more than `permutations`.
    """
    import rensa

    if count * rows > permutations:
        raise ValueError(f"{count} bands of {rows} rows need {count * rows} permutations, not {permutations}")
    files = len(shingles.words)
    hashes_G, offsets = (array.astype(np.uint64) for array in (shingles.hashes_G, shingles.offsets))
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes_G, offsets, permutations, _SEED)
    signatures = np.frombuffer(b"".join(array("I", row) for row in matrix.to_rows()), np.uint32)
    cut = signatures.reshape(files, permutations)[:, : count * rows].reshape(files, count, rows)
    keys = np.zeros((files, count), np.uint64)
    for row in range(rows):
        keys = (keys ^ cut[:, :, row]) * _ODD
        keys ^= keys >> np.uint64(29)
    return keys
