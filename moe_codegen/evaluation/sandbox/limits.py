"""What one program may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one run in a sandbox.

    Attributes:
        seconds: of wall-clock time.
        memory_bytes: of all its processes together, and of the data of each.
        processes: processes and threads at a time.
        disk_bytes: written to its own folder, which is in memory.
        output_bytes: written to standard output and error before it is stopped.
    """

    seconds: float
    memory_bytes: int = 1 << 30
    processes: int = 64
    disk_bytes: int = 64 << 20
    output_bytes: int = 16 << 20

    def prlimit(self) -> list[str]:
        """The command that starts another one under those bounds that the kernel keeps for each process."""
        return [
            "prlimit",
            f"--data={self.memory_bytes}",
            f"--nproc={self.processes}",
            f"--fsize={self.disk_bytes}",
            f"--cpu={2 * int(self.seconds) + 2}",  # what escapes the clock; two threads use it up twice as fast
            "--nofile=256",
            "--core=0",
            "--",
        ]
