"""What a process and all its descendants use, from /proc."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE, _TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of a process tree: processor seconds of those alive, and resident bytes."""

    cpu_seconds: float
    memory_bytes: int


def usage_of(root: int) -> Usage:
    """What `root` and its descendants use now; a process that ends meanwhile counts as nothing.

    Pages that several processes share are counted once for each, so that memory is an upper bound; see `shared_memory`.
    """
    cpu, memory = 0.0, 0
    for pid in tree_of(root):
        try:
            # After the name in parentheses, which may hold blanks: field 14 is user time, 15 system time, 24 pages.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += (int(fields[11]) + int(fields[12])) / _TICK
            memory += int(fields[21]) * _PAGE
        except (OSError, IndexError):
            continue
    return Usage(cpu, memory)


def shared_memory(root: int) -> int:
    """Resident bytes of `root` and its descendants, each shared page counted once (proportional set sizes)."""
    total = 0
    for pid in tree_of(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def tree_of(root: int) -> Iterator[int]:
    """`root` and its descendants; an orphan inside a process namespace stays one, as the namespace's init adopts it."""
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except OSError:
            continue
