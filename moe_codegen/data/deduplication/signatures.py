"""What deduplication keeps of each file between its passes: small arrays in memory, shingles on disk."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np

from moe_codegen.data.deduplication.shingles import jaccard


@dataclass(frozen=True)
class Signatures:
    """One entry a file: its row in the unit, content hash (F, 2), stars, bytes, band keys (F, bands), shingles.

    `shingles` is how many lie in the shingle file; negative for a file too short to have near-duplicates.
    """

    rows: np.ndarray
    content: np.ndarray
    stars: np.ndarray
    size: np.ndarray
    bands: np.ndarray
    shingles: np.ndarray

    @classmethod
    def joined(cls, parts: list["Signatures"], bands: int) -> "Signatures":
        """The parts one after the other; `bands` is the number of keys a file where there is no part."""
        if not parts:
            nothing = np.zeros(0, np.int64)
            pairs, keys = np.zeros((0, 2), np.uint64), np.zeros((0, bands), np.uint64)
            return cls(nothing, pairs, nothing, nothing, keys, nothing)
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def save(self, folder: Path, number: int) -> None:
        """Write `number`'s files: the band keys apart, since they are read one band at a time."""
        np.save(folder / f"{number:05d}.bands.npy", np.asfortranarray(self.bands))
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "bands"}
        np.savez(folder / f"{number:05d}.npz", **arrays)

    @classmethod
    def load(cls, folder: Path, number: int) -> "Signatures":
        """What `save` wrote, without the band keys."""
        with np.load(folder / f"{number:05d}.npz") as arrays:
            rows = len(arrays["rows"])
            return cls(bands=np.zeros((rows, 0), np.uint64), **{name: arrays[name] for name in arrays.files})

    @staticmethod
    def band(folder: Path, units: int, band: int) -> np.ndarray:
        """The keys of one band, of all files of all units."""
        return np.concatenate(
            [np.load(folder / f"{number:05d}.bands.npy", mmap_mode="r")[:, band] for number in range(units)]
        )


class ShingleFile:
    """Writes one unit's sets of shingles, file after file."""

    def __init__(self, folder: Path, number: int) -> None:
        self._file = _path(folder, number).open("wb")

    def append(self, hashes_G: np.ndarray) -> None:
        """Add the shingles of some files."""
        hashes_G.tofile(self._file)

    def __enter__(self) -> "ShingleFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class ShingleStore:
    """The shingles of any file, read when two files are to be compared.

    `starts` are the numbers of each unit's first file and of the last file's successor; `counts` the shingles a file.
    """

    def __init__(self, folder: Path, starts: np.ndarray, counts: np.ndarray) -> None:
        self._folder, self._starts = folder, starts
        self._counts = np.abs(counts)
        ends = np.cumsum(self._counts)
        before = np.concatenate([[0], ends])
        self._offsets = before[:-1] - before[starts[np.searchsorted(starts, np.arange(len(counts)), side="right") - 1]]
        self._set = lru_cache(maxsize=64)(self._read)

    def jaccard(self, one: int, two: int) -> float:
        """The exact similarity of two files."""
        return jaccard(self._set(one), self._set(two))

    def _read(self, file: int) -> np.ndarray:
        unit = int(np.searchsorted(self._starts, file, side="right")) - 1
        path = _path(self._folder, unit)
        return np.fromfile(path, np.uint32, int(self._counts[file]), offset=int(self._offsets[file]) * 4)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.shingles"
