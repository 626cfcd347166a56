"""Which training files are like a file held out: an exact search by the shingles of the files held out.

Two sets x and y of Jaccard similarity t or more share at least t |x| elements, since t |x| <= t |x or y| <= |x and y|.
So y lacks at most (1 - t) |x| elements of x, and any more of them than that include one of y. A table with a bit set
for each shingle held out settles nearly every file at once: too few of its shingles are in it. Of any other file the
rarest shingles name the candidates (prefix filtering: Chaudhuri et al., ICDE 2006), whose similarity is then computed.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_codegen.data.deduplication.shingles import jaccard

_BLOCK_SHINGLES = 16 << 20  # sorted at once, in memory
_FILTER = "filter.npy"


@dataclass(frozen=True)
class Block:
    """Some of the files held out: their sets one after the other, and the same shingles sorted, each with its file."""

    values: np.ndarray  # uint32
    offsets: np.ndarray  # the set of file i is values[offsets[i]:offsets[i + 1]]
    shingle: np.ndarray  # uint32
    owner: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, sizes: np.ndarray) -> "Block":
        """The block of files whose sets are of `sizes` shingles and lie one after the other in `values`."""
        order = np.argsort(values, kind="stable")
        owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
        return cls(values, np.cumsum([0, *sizes]), values[order], owner)

    def nearest(self, wanted: np.ndarray, similarity: float) -> float:
        """Jaccard similarity of the set `wanted` and the one most like it; 0 where that is below `similarity`."""
        begin, end = (np.searchsorted(self.shingle, wanted, side) for side in ("left", "right"))
        enough = min(len(wanted) - math.ceil(similarity * len(wanted) - 1e-9) + 1, len(wanted))
        rarest = np.argsort(end - begin, kind="stable")[:enough]
        owners = [self.owner[begin[place] : end[place]] for place in rarest if begin[place] < end[place]]
        candidates = np.unique(np.concatenate(owners or [self.owner[:0]]))
        near = (jaccard(wanted, self.values[self.offsets[file] : self.offsets[file + 1]]) for file in candidates)
        return max((value for value in near if value >= similarity), default=0.0)


@dataclass(frozen=True)
class HeldOutIndex:
    """Blocks of files held out, and a table with a bit set for the upper bits of each of their shingles.

    The arrays are mapped and not read, so that many blocks cost no memory that others could not have.
    """

    bits: np.ndarray  # uint8; a power of two of them
    blocks: tuple[Block, ...]

    @classmethod
    def open(cls, folder: Path) -> "HeldOutIndex":
        """What `build_index` wrote."""
        blocks = (
            Block(*(np.load(one / f"{name}.npy", mmap_mode="r") for name in Block.__dataclass_fields__))
            for one in sorted(folder.glob("block-*"))
        )
        return cls(np.load(folder / _FILTER, mmap_mode="r"), tuple(blocks))

    def nearest(self, values: np.ndarray, offsets: np.ndarray, similarity: float) -> np.ndarray:
        """Of each set the similarity to the file held out that is most like it; 0 where below `similarity`, (F,)."""
        near = np.zeros(len(offsets) - 1)
        place, bit = _place(values, len(self.bits))
        known = np.diff(np.concatenate([[0], np.cumsum((self.bits[place] & bit) != 0)])[offsets])
        for file in np.flatnonzero(known >= np.maximum(similarity * np.diff(offsets) - 1e-9, 1)):
            wanted = values[offsets[file] : offsets[file + 1]]
            near[file] = max(block.nearest(wanted, similarity) for block in self.blocks)
        return near


def build_index(parts: list[Path], counts: list[int], folder: Path) -> None:
    """Write the index of the files held out to `folder`; `parts` hold `counts` shingles each."""
    filter_bytes = 1 << min(max(sum(counts), 1).bit_length(), 29)  # 8 to 16 bits a shingle; 2^32 in all tell them apart
    bits = np.zeros(filter_bytes, np.uint8)
    for number, some in enumerate(_blocks(counts)):
        loaded = [np.load(parts[part]) for part in some]
        block = Block.of(*(np.concatenate([arrays[name] for arrays in loaded]) for name in ("values", "sizes")))
        place, bit = _place(block.shingle, filter_bytes)
        first = np.flatnonzero(np.diff(place, prepend=-1))
        bits[place[first]] |= np.bitwise_or.reduceat(bit, first)
        (folder / f"block-{number:03d}").mkdir(parents=True, exist_ok=True)
        for name in Block.__dataclass_fields__:
            np.save(folder / f"block-{number:03d}" / f"{name}.npy", getattr(block, name))
    folder.mkdir(exist_ok=True)
    np.save(folder / _FILTER, bits)


def _place(shingles: np.ndarray, filter_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """The byte of the table and the bit in it that stand for each shingle."""
    upper = shingles >> np.uint32(32 - (filter_bytes.bit_length() + 2))
    return (upper >> np.uint32(3)).astype(np.int64), np.uint8(1) << (upper & np.uint32(7)).astype(np.uint8)


def _blocks(counts: list[int]) -> list[list[int]]:
    """The parts that share a block; one without a shingle is in none."""
    blocks: list[list[int]] = []
    held = _BLOCK_SHINGLES
    for part, count in enumerate(counts):
        if count and held + count > _BLOCK_SHINGLES:
            blocks.append([])
            held = 0
        if count:
            blocks[-1].append(part)
            held += count
    return blocks
