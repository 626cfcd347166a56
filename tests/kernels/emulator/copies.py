"""Copies that a program starts and waits for, done at the last moment that PTX allows: at the wait.

What is read before its wait is then not there yet, and what is overwritten too early arrives wrong.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kernels.emulator.instructions import Mask
from tests.kernels.emulator.machine import Program, operation
from tests.kernels.emulator.memory import MemoryFault
from tests.kernels.emulator.ptx import Constant, Instruction, UnknownInstruction
from tests.kernels.emulator.tensor_cores import swizzled


@dataclass
class TensorMap:
    """What the driver is told of a tensor that is copied in boxes: elements, outermost dimension first."""

    address: int
    element_bytes: int
    shape: list[int]
    strides: list[int]
    box: list[int]
    row_bytes: int  # of the pattern in which rows of boxes are swizzled; 16: they are not

    def places(self, coordinates: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each element of the box at `coordinates`: its address, in 64 bits that wrap; whether the tensor has it."""
        address = np.full(self.box, self.address % 2**64, np.uint64)
        inside = np.ones(self.box, bool)
        for axis, (start, extent, stride) in enumerate(zip(coordinates, self.shape, self.strides, strict=True)):
            index = start + np.arange(self.box[axis], dtype=np.int64)
            shape = [-1 if each == axis else 1 for each in range(len(self.box))]
            step = np.uint64(stride * self.element_bytes % 2**64)
            address = address + (index.astype(np.uint64) * step).reshape(shape)
            inside = inside & ((index >= 0) & (index < extent)).reshape(shape)
        return address.reshape(-1), inside.reshape(-1)

    def shared_places(self, start: int) -> np.ndarray:
        """Where the box's elements lie in shared memory."""
        if start % (8 * self.row_bytes):
            raise MemoryFault(f"a box in shared memory at {start}, no multiple of {8 * self.row_bytes}")
        return swizzled(start + self.element_bytes * np.arange(int(np.prod(self.box))), self.row_bytes)


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all arrived and all bytes came."""

    count: int
    pending: int
    phase: int = 0
    bytes: int = 0
    copies: list[Any] = field(default_factory=list)

    def settle(self) -> None:
        """End the phase if nothing is missing."""
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase ^ 1, self.count


@operation("mbarrier")
def _barrier(program: Program, instruction: Instruction, mask: Mask) -> None:
    what, operands = instruction.modifiers[0], instruction.operands
    lanes = np.arange(program.threads) if mask is None else np.flatnonzero(mask)
    if what == "try_wait":
        address = int(program.address(operands[1])[lanes[0]])
        barrier = program.barriers[address]
        for copy in barrier.copies:
            copy()
        barrier.copies.clear()
        barrier.settle()
        parity = program.read(operands[2], np.uint32)
        program.write(operands[0], parity != barrier.phase, mask)
        return
    for lane in lanes:
        address = int(program.address(operands[1] if what == "arrive" else operands[0])[lane])
        if what == "init":
            count = operands[1].value
            program.barriers[address] = Barrier(count, count)
        elif what == "inval":
            if program.barriers.pop(address).copies:
                raise MemoryFault("a barrier ends while copies to it are under way")
        elif what == "arrive":
            barrier = program.barriers[address]
            if barrier.pending == 0:
                raise MemoryFault("more arrivals at a barrier than it waits for")
            barrier.pending -= 1
            barrier.bytes += int(program.read(operands[2], np.uint32)[lane])
        else:
            raise UnknownInstruction(instruction.text)


@operation("cp")
def _copy(program: Program, instruction: Instruction, mask: Mask) -> None:
    if "tensor" in instruction.modifiers:
        lanes = np.arange(program.threads) if mask is None else np.flatnonzero(mask)
        to_shared = instruction.modifiers[instruction.modifiers.index("tensor") + 2].startswith("shared")
        for lane in lanes:
            (_tensor_to_shared if to_shared else _shared_to_tensor)(program, instruction, lane)
        return
    kind = "bulk" if "bulk" in instruction.modifiers else "words"
    queue = program.pending.setdefault(kind, [[]])  # groups, the last one still open
    if "commit_group" in instruction.modifiers:
        queue.append([])
    elif "wait_group" in instruction.modifiers:
        left = instruction.operands[0].value
        while len(queue) - 1 > left:
            for copy in queue.pop(0):
                copy()
    else:
        queue[-1].append(_words_to_shared(program, instruction, mask))


def _words_to_shared(program: Program, instruction: Instruction, mask: Mask) -> Any:
    """cp.async.ca|cg.shared.global [to], [from], size[, bytes of it that are read; the others are 0]."""
    target, source, size, *given = instruction.operands
    width = size.value
    lanes = np.arange(program.threads) if mask is None else np.flatnonzero(mask)
    to, source_N = program.address(target)[lanes], program.address(source)[lanes]
    given_N = program.read(given[0] if given else Constant(width), np.uint32)[lanes]
    if not np.isin(given_N, (0, width)).all():
        raise UnknownInstruction(f"{instruction.text}: a part of a word")

    def copy() -> None:
        values = np.zeros((len(lanes), width), np.uint8)
        read = given_N > 0
        values[read] = program.memory.load(source_N[read], width, program.number)
        program.shared.store(to, values)

    return copy


def _coordinates(program: Program, operand: Any, lane: int) -> tuple[TensorMap, list[int]]:
    tensor_map = program.parameters[int(program.address(operand)[lane])]
    coordinates = [int(program.read(each, np.int32)[lane]) for each in operand.coordinates]
    return tensor_map, coordinates[::-1]


def _tensor_to_shared(program: Program, instruction: Instruction, lane: int) -> None:
    target, source, barrier = instruction.operands
    tensor_map, coordinates = _coordinates(program, source, lane)
    start = int(program.address(target)[lane])
    waiting = program.barriers[int(program.address(barrier)[lane])]

    def copy() -> None:
        addresses, inside = tensor_map.places(coordinates)
        width = tensor_map.element_bytes
        values = np.zeros((len(addresses), width), np.uint8)
        values[inside] = program.memory.load(addresses[inside], width, program.number)
        program.shared.store(tensor_map.shared_places(start), values)
        waiting.bytes -= values.size

    waiting.copies.append(copy)


def _shared_to_tensor(program: Program, instruction: Instruction, lane: int) -> None:
    target, source = instruction.operands
    tensor_map, coordinates = _coordinates(program, target, lane)
    start = int(program.address(source)[lane])

    def copy() -> None:
        addresses, inside = tensor_map.places(coordinates)
        values = program.shared.load(tensor_map.shared_places(start), tensor_map.element_bytes)
        program.memory.store(addresses[inside], values[inside], program.number)

    program.pending.setdefault("bulk", [[]])[-1].append(copy)
