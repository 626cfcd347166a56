"""Matrix instructions: how PTX lays fragments over a warp's registers, and tiles in shared memory.

"Matrix fragments for mma.m16n8k16", "ldmatrix", "wgmma.mma_async" and "Shared memory matrix layout" in PTX ISA 9.
"""

import numpy as np

from tests.kernels.emulator.instructions import Mask, as_float
from tests.kernels.emulator.machine import Program, operation
from tests.kernels.emulator.ptx import Instruction, Register, UnknownInstruction

LANE = np.arange(32)
ROW_BYTES_OF_DESCRIPTOR = {0: 16, 1: 128, 2: 64, 3: 32}  # by the bits that name the swizzle; rows of 16 have none


def swizzled(addresses: np.ndarray, row_bytes: int) -> np.ndarray:
    """Where the byte lies that a tile has at `addresses`: bits 4 .. 6 xor bits 7 .. 9, as many as the rows are wide."""
    return addresses ^ (((addresses >> 7) & (row_bytes // 16 - 1)) << 4)


@operation("ldmatrix", "stmatrix")
def _move_matrices(program: Program, instruction: Instruction, mask: Mask) -> None:
    """8x8 matrices of 16 bits: lanes 8i .. 8i + 7 have the addresses of the rows of matrix i."""
    _all_threads(instruction, mask)
    loads = instruction.opcode == "ldmatrix"
    registers, address = instruction.operands if loads else reversed(instruction.operands)
    addresses_WL = program.address(address).reshape(program.warps, 32)
    for number, register in enumerate(registers):
        rows = addresses_WL[:, 8 * number : 8 * number + 8].reshape(-1)
        bits = program.shared.load(rows, 16) if loads else program.read(register, np.uint32)
        matrix_W88 = bits.view(np.uint16).reshape(program.warps, 8, 8)  # a register of a lane has a pair of a row
        if "trans" in instruction.modifiers:
            matrix_W88 = matrix_W88.swapaxes(1, 2)
        moved = np.ascontiguousarray(matrix_W88).reshape(-1)
        if loads:
            program.write(register, moved.view(np.uint32), None)
        else:
            program.shared.store(rows, moved.view(np.uint8).reshape(-1, 16))


def _all_threads(instruction: Instruction, mask: Mask) -> None:
    if mask is not None:
        raise UnknownInstruction(f"{instruction.text}: not of all threads")


def _fragment_of_a(program: Program, registers: tuple, kind: str) -> np.ndarray:
    """(warps, 16, 16): a warp's rows in four registers of two values."""
    tile = np.empty((program.warps, 16, 16), np.float32)
    row, column = LANE // 4, 2 * (LANE % 4)
    for number, register in enumerate(registers):
        pairs = as_float(np.ascontiguousarray(program.read(register, np.uint32)).view(np.uint16), kind)
        pairs = pairs.reshape(program.warps, 32, 2)
        for half in range(2):
            tile[:, row + 8 * (number % 2), column + 8 * (number // 2) + half] = pairs[:, :, half]
    return tile


@operation("mma")
def _multiply(program: Program, instruction: Instruction, mask: Mask) -> None:
    """mma.sync.aligned.m16n8k16.row.col.f32.A.B.f32: one product a warp."""
    if "m16n8k16" not in instruction.modifiers:
        raise UnknownInstruction(instruction.text)
    kind = instruction.modifiers[-3]
    targets, a, b, c = instruction.operands
    a_WMK = _fragment_of_a(program, a, kind)
    b_WKN = np.empty((program.warps, 16, 8), np.float32)
    for number, register in enumerate(b):
        pairs = as_float(np.ascontiguousarray(program.read(register, np.uint32)).view(np.uint16), kind)
        for half in range(2):
            b_WKN[:, 2 * (LANE % 4) + 8 * number + half, LANE // 4] = pairs.reshape(program.warps, 32, 2)[:, :, half]
    product = a_WMK @ b_WKN
    for number, (target, addend) in enumerate(zip(targets, c, strict=True)):
        part = product[:, LANE // 4 + 8 * (number // 2), 2 * (LANE % 4) + number % 2].reshape(-1)
        program.write(target, part + program.read(addend, np.float32), mask)


def _shared_tile(program: Program, descriptors_G: np.ndarray, rows: int, is_row_major: bool, kind: str) -> np.ndarray:
    """(warp groups, rows, 16) from shared memory; row-major: the 16 values of a product's sum are adjacent."""
    tiles = []
    for descriptor in descriptors_G.tolist():
        start, leading, stride = (16 * (descriptor >> place & 0x3FFF) for place in (0, 16, 32))
        width = ROW_BYTES_OF_DESCRIPTOR[descriptor >> 62]
        row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
        if width == 16:
            raise UnknownInstruction("a tile that is not swizzled")
        if is_row_major:
            place = row % 8 * width + row // 8 * stride + 2 * k
        else:
            values = width // 2  # adjacent ones, of one k
            place = row % values * 2 + row // values * leading + k % 8 * width + k // 8 * stride
        bits = program.shared.load(swizzled(start + place, width).reshape(-1), 2).view(np.uint16)
        tiles.append(as_float(np.ascontiguousarray(bits[:, 0]), kind).reshape(rows, 16))
    return np.stack(tiles)


@operation("wgmma")
def _warp_group(program: Program, instruction: Instruction, mask: Mask) -> None:
    """wgmma.mma_async.sync.aligned.m64nNk16.f32.A.B d, a, b, scale-d, scale-a, scale-b[, trans-a], trans-b."""
    if instruction.modifiers[0] != "mma_async":
        return  # fence, commit_group, wait_group: products are done at once here
    _all_threads(instruction, mask)
    columns = int(instruction.modifiers[3].removeprefix("m64n").removesuffix("k16"))
    kind = instruction.modifiers[-2]
    targets, a, b, keeps, sign_a, sign_b, *transposed = instruction.operands
    assert sign_a.value == sign_b.value == 1
    groups = program.warps // 4
    trans_b = bool(transposed[-1].value)
    if isinstance(a, tuple):
        a_GMK = _fragment_of_a(program, a, kind).reshape(groups, 64, 16)
    else:
        a_GMK = _shared_tile(program, program.read(a, np.uint64)[::128], 64, not transposed[0].value, kind)
    b_GNK = _shared_tile(program, program.read(b, np.uint64)[::128], columns, not trans_b, kind)
    product = (a_GMK @ b_GNK.swapaxes(1, 2)).reshape(program.warps, 16, columns)
    keeps_N = (
        program.read(keeps, np.bool_) if isinstance(keeps, Register) else np.full(program.threads, bool(keeps.value))
    )
    for number, target in enumerate(targets):
        row = LANE // 4 + 8 * (number // 2 % 2)
        part = product[:, row, 8 * (number // 4) + 2 * (LANE % 4) + number % 2].reshape(-1)
        held = np.where(keeps_N, program.read(target, np.float32), np.float32(0))
        program.write(target, part + held, None)
