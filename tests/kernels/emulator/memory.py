"""Memory as a launch sees it: the tensors it was handed, and which program wrote or read which byte."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

MOST_WATCHED = 2**28  # bytes of a tensor up to which every access is remembered


class MemoryFault(RuntimeError):
    """An access that a GPU's memory checker would report."""


class GlobalMemory:
    """The storages of a launch's tensors.

    MemoryFault for an access outside them, one that is not aligned, and, since the programs of a launch run in no
    order, one of a byte that another program of the launch writes.

    Attributes:
        loaded: bytes read, by the address of the storage they lie in.
    """

    def __init__(self, storages: list[tuple[int, int]]) -> None:
        """storages: address and bytes of each."""
        storages = sorted({each for each in storages if each[1] > 0})
        self.starts = np.array([start for start, _ in storages], dtype=np.uint64)
        self.ends = np.array([start + size for start, size in storages], dtype=np.uint64)
        self.bytes = [
            np.ctypeslib.as_array(ctypes.cast(start, ctypes.POINTER(ctypes.c_uint8)), (size,))
            for start, size in storages
        ]
        self.writers, self.readers = (  # of each byte: a program's number + 1, 0 for none, -1 for several
            [np.zeros(size, np.int32) if size <= MOST_WATCHED else None for _, size in storages] for _ in range(2)
        )
        self.loaded = {start: 0 for start, _ in storages}

    def load(self, addresses_N: np.ndarray, width: int, program: int) -> np.ndarray:
        """(N, width) bytes."""
        values = np.empty((len(addresses_N), width), np.uint8)
        for storage, lanes, bytes_NW in self._places(addresses_N, width):
            self.loaded[int(self.starts[storage])] += bytes_NW.size
            values[lanes] = self.bytes[storage][bytes_NW]
            writers, readers = self.writers[storage], self.readers[storage]
            if writers is not None and readers is not None:
                if _others(writers[bytes_NW], program).any():
                    raise MemoryFault(f"program {program} reads what another of its launch writes")
                readers[bytes_NW] = np.where(_others(readers[bytes_NW], program), -1, program + 1)
        return values

    def store(self, addresses_N: np.ndarray, values_NW: np.ndarray, program: int) -> None:
        """Bytes at each address; the last of two lanes with one address wins."""
        for storage, lanes, bytes_NW in self._places(addresses_N, values_NW.shape[1]):
            writers, readers = self.writers[storage], self.readers[storage]
            if writers is not None and readers is not None:
                if _others(writers[bytes_NW], program).any() or _others(readers[bytes_NW], program).any():
                    raise MemoryFault(f"program {program} writes what another of its launch reads or writes")
                writers[bytes_NW] = program + 1
            self.bytes[storage][bytes_NW] = values_NW[lanes]

    def _places(self, addresses_N: np.ndarray, width: int) -> Iterator[tuple[int, Any, np.ndarray]]:
        """Of each storage that is touched: its number, the lanes that touch it, and the bytes of each."""
        if not len(addresses_N):
            return
        addresses_N = addresses_N.astype(np.uint64)
        if (addresses_N % np.uint64(min(width, 16))).any():
            raise MemoryFault(f"{width} bytes at an address that is no multiple of {width}")
        storage_N = np.searchsorted(self.starts, addresses_N, side="right") - 1
        inside_N = (storage_N >= 0) & (addresses_N + np.uint64(width) <= self.ends[storage_N])
        if not inside_N.all():
            outside = addresses_N[~inside_N]
            raise MemoryFault(f"{len(outside)} lanes reach outside every tensor of the launch, one at {outside[0]:#x}")
        first = storage_N[0]
        alike = (storage_N == first).all()
        for storage in (first,) if alike else np.unique(storage_N):
            lanes = slice(None) if alike else np.flatnonzero(storage_N == storage)
            offsets_N = (addresses_N[lanes] - self.starts[storage]).astype(np.int64)
            yield storage, lanes, offsets_N[:, None] + np.arange(width)


def _others(owners: np.ndarray, program: int) -> np.ndarray:
    return (owners != 0) & (owners != program + 1)


class SharedMemory:
    """A program's own memory, every bit of it set at first: NaN in every float format."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)

    def load(self, addresses_N: np.ndarray, width: int) -> np.ndarray:
        """(N, width) bytes."""
        return self.bytes[self._places(addresses_N, width)]

    def store(self, addresses_N: np.ndarray, values_NW: np.ndarray) -> None:
        """Bytes at each address."""
        self.bytes[self._places(addresses_N, values_NW.shape[1])] = values_NW

    def _places(self, addresses_N: np.ndarray, width: int) -> np.ndarray:
        addresses_N = np.asarray(addresses_N).astype(np.int64)
        if (addresses_N % min(width, 16)).any():
            raise MemoryFault(f"{width} bytes of shared memory at an address that is no multiple of {width}")
        if len(addresses_N) and (addresses_N.min() < 0 or addresses_N.max() + width > len(self.bytes)):
            raise MemoryFault(f"shared memory at {addresses_N.max()}, of {len(self.bytes)} bytes")
        return addresses_N[:, None] + np.arange(width)
