"""One program of a launch: its threads' registers, shared memory and control flow.

All threads at the lowest instruction go on together, so that those behind catch up before the others continue: threads
that a branch parts meet again where its ways do. A barrier holds threads until all are there.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels.emulator.memory import GlobalMemory, MemoryFault, SharedMemory
from tests.kernels.emulator.ptx import (
    Address,
    Constant,
    Instruction,
    Kernel,
    Operand,
    Register,
    Symbol,
    UnknownInstruction,
)

MOST_STEPS = 1_000_000  # of a program: beyond, it waits for what does not come
CONTROL = ("bra", "ret", "bar")
SHARED_BASE = 1024  # where shared memory begins, in its own addresses; swizzles count from 0

Operation = Callable[["Program", Instruction, "np.ndarray | None"], None]
OPERATIONS: dict[str, Operation] = {}

# Of these and a type an instruction's name is made; another (.sat, .cc, ...) would change what it means.
MODIFIERS = {
    "rn", "ftz", "approx", "full", "NaN", "lo", "hi", "wide", "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu",
    "leu", "gtu", "geu", "num", "nan", "sync", "warp", "aligned", "up", "bfly", "idx", "add", "min", "max", "param",
    "global", "shared", "shared::cta", "shared::cluster", "v2", "v4", "m8n8", "x1", "x2", "x4", "trans", "row", "col",
    "m16n8k16", "async", "ca", "cg", "bulk", "bulk_group", "tensor", "1d", "2d", "3d", "4d", "5d", "mma_async", "fence",
    "mbarrier::complete_tx::bytes", "commit_group", "wait_group", "read", "proxy", "arrive", "expect_tx", "init",
    "inval", "try_wait", "parity", "uni",
}  # fmt: skip
TYPES = re.compile(r"pred|[bsu](8|16|32|64)|(f16|bf16|f32)(x2)?|m64n\d+k16")


def operation(*opcodes: str) -> Callable[[Operation], Operation]:
    """Register what computes these opcodes, given program, instruction and the mask of its threads (None: all)."""

    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(opcodes, function))
        return function

    return register


def check(kernel: Kernel) -> None:
    """UnknownInstruction for an instruction that is not known, or not in this form."""
    for each in kernel.instructions:
        known = each.opcode in OPERATIONS or each.opcode in CONTROL
        if not known or not all(m in MODIFIERS or TYPES.fullmatch(m) for m in each.modifiers):
            raise UnknownInstruction(f"{kernel.name}: {each.text}")


class Program:
    """One program (CTA) on its way through a kernel."""

    def __init__(
        self,
        kernel: Kernel,
        place: tuple[int, int, int],
        grid: tuple[int, int, int],
        parameters: dict[str, int],
        memory: GlobalMemory,
        shared_bytes: int,
    ) -> None:
        self.kernel, self.memory, self.parameters = kernel, memory, parameters
        self.number = place[0] + grid[0] * (place[1] + grid[1] * place[2])
        self.threads = kernel.threads
        self.shared = SharedMemory(SHARED_BASE + shared_bytes)
        self.registers = {name: np.zeros(self.threads, kind) for name, kind in kernel.registers.items()}
        self.lanes = np.arange(self.threads) % 32
        self.warps = self.threads // 32
        thread_N = np.arange(self.threads, dtype=np.uint32)
        axes = zip("xyz", place, grid, strict=True)
        self.symbols: dict[str, Any] = {"%tid.x": thread_N, "%ntid.x": self.threads, "global_smem": SHARED_BASE}
        self.symbols |= {f"{name}.{axis}": v for axis, p, g in axes for name, v in (("%ctaid", p), ("%nctaid", g))}
        self.pending: dict[str, list[Any]] = {}  # asynchronous work that is not yet done, by its kind
        self.barriers: dict[int, Any] = {}  # mbarriers in shared memory, by address

    def run(self) -> None:
        """From the first instruction until all threads returned."""
        at_N = np.zeros(self.threads, np.int64)
        done_N, waits_N = np.zeros(self.threads, bool), np.zeros(self.threads, bool)
        together = True  # whether all threads are at one instruction
        for _ in range(MOST_STEPS):
            if together:
                at, mask_N = int(at_N[0]), None
            else:
                ready_N = ~(done_N | waits_N)
                if not ready_N.any():
                    waits_N[:] = False  # all that are left are at a barrier
                    continue
                at = int(at_N[ready_N].min())
                mask_N = ready_N & (at_N == at)
            instruction = self.kernel.instructions[at]
            active_N = self._guarded(instruction, mask_N)
            following: Any = at + 1
            if instruction.opcode == "bra":
                following = np.where(True if active_N is None else active_N, instruction.target, at + 1)
            elif instruction.opcode == "ret":
                done_N |= True if active_N is None else active_N
                if done_N.all():
                    break
            elif instruction.opcode == "bar":
                if mask_N is not None and "warp" not in instruction.modifiers:
                    waits_N |= mask_N
            elif active_N is None or active_N.any():
                OPERATIONS[instruction.opcode](self, instruction, active_N)
            if together:
                at_N[:] = following
            else:
                at_N = np.where(mask_N, following, at_N)
            if not together or instruction.opcode in ("bra", "ret"):
                together = not done_N.any() and bool((at_N == at_N[0]).all())
                if together:
                    waits_N[:] = False
        else:
            raise TimeoutError(f"{self.kernel.name} goes on for {MOST_STEPS} steps; it is at: {instruction.text}")
        if any(copies for copies in self.pending.get("bulk", [])):
            raise MemoryFault(f"{self.kernel.name} ends before its stores are done")

    def _guarded(self, instruction: Instruction, mask_N: np.ndarray | None) -> np.ndarray | None:
        if instruction.guard is None:
            return mask_N
        holds_N = self.registers[instruction.guard.name] != instruction.negated
        holds_N = holds_N if mask_N is None else holds_N & mask_N
        return None if mask_N is None and holds_N.all() else holds_N

    def read(self, operand: Operand, kind: Any) -> np.ndarray:
        """(threads,) values of `kind`; of a register that is wider, its low bits."""
        kind = np.dtype(kind)
        bits = np.dtype(f"u{kind.itemsize}") if kind != np.bool_ else kind
        if isinstance(operand, Register):
            value_N = self.registers[operand.name]
            if value_N.dtype.itemsize < kind.itemsize:
                raise TypeError(f"{operand.name} is {value_N.dtype}, read as {kind}")
            return (value_N if value_N.dtype.itemsize == kind.itemsize else value_N.astype(bits)).view(kind)
        if isinstance(operand, Constant):
            return np.full(self.threads, operand.value % 2 ** (8 * kind.itemsize), bits).view(kind)
        if isinstance(operand, Symbol):
            value = self.symbols[operand.name] if operand.name in self.symbols else self.parameters[operand.name]
            return np.broadcast_to(np.asarray(value).astype(bits), self.threads).view(kind)
        raise TypeError(f"{operand} is no value")

    def write(self, operand: Operand, value_N: np.ndarray, mask_N: np.ndarray | None) -> None:
        """Into a register, for the threads of the mask; into one that is wider, extended by its sign."""
        if operand == Symbol("_"):
            return
        assert isinstance(operand, Register)
        old_N = self.registers[operand.name]
        if value_N.dtype.itemsize > old_N.dtype.itemsize:
            raise TypeError(f"{operand.name} is {old_N.dtype}, given {value_N.dtype}")
        if value_N.dtype.itemsize < old_N.dtype.itemsize:
            value_N = value_N.astype(f"{value_N.dtype.kind}{old_N.dtype.itemsize}")
        bits_N = np.ascontiguousarray(value_N).view(old_N.dtype)
        self.registers[operand.name] = bits_N if mask_N is None else np.where(mask_N, bits_N, old_N)

    def address(self, operand: Operand) -> np.ndarray:
        """(threads,) addresses, int64 for shared memory and uint64 for global."""
        assert isinstance(operand, Address)
        if isinstance(operand.base, Register):
            base_N = self.registers[operand.base.name]
            if base_N.dtype == np.uint64:
                return base_N + np.uint64(operand.offset % 2**64)
            return base_N.astype(np.int64) + operand.offset
        return self.read(operand.base, np.int64) + operand.offset
