"""Arithmetic, moves, loads and stores: what a thread does alone, or with its warp."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels.bfloat16 import narrow, widen
from tests.kernels.emulator.machine import Program, operation
from tests.kernels.emulator.ptx import Address, Instruction, Operand, UnknownInstruction

Mask = np.ndarray | None
KINDS: dict[str, Any] = {
    "pred": np.bool_, "f32": np.float32,
    **{f"{letter}{bits}": np.dtype(f"{code}{bits // 8}")
       for letter, code in (("u", "u"), ("b", "u"), ("s", "i")) for bits in (8, 16, 32, 64)},
}  # fmt: skip
WIDER = {f"{letter}{bits}": f"{letter}{2 * bits}" for letter in "us" for bits in (16, 32)}


def as_float(bits: np.ndarray, kind: str) -> np.ndarray:
    """16 bits, "bf16" or "f16", as float32."""
    return widen(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def from_float(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as 16 bits, rounded to nearest even."""
    if kind == "bf16":
        return narrow(np.ascontiguousarray(values, np.float32))
    return values.astype(np.float16).view(np.uint16)


def value_of(program: Program, operand: Operand, kind: str) -> np.ndarray:
    """(threads,) numbers to compute with, 16-bit floats as float32; (threads, 2) of a pair such as "bf16x2"."""
    one, _, pair = kind.partition("x")
    if pair:
        bits_N = program.read(operand, np.uint64 if one == "f32" else np.uint32)
        halves_N2 = np.ascontiguousarray(bits_N).view(np.float32 if one == "f32" else np.uint16).reshape(-1, 2)
        return halves_N2 if one == "f32" else as_float(halves_N2, one)
    if kind in ("bf16", "f16"):
        return as_float(program.read(operand, np.uint16), kind)
    return program.read(operand, KINDS[kind])


def put(program: Program, operand: Operand, values: np.ndarray, kind: str, mask: Mask) -> None:
    """The other way round: rounded once, and into a register."""
    one, _, pair = kind.partition("x")
    bits = from_float(values, one) if one in ("bf16", "f16") else values.astype(KINDS[one])
    if pair:
        bits = np.ascontiguousarray(bits).reshape(-1).view(np.uint64 if one == "f32" else np.uint32)
    program.write(operand, bits, mask)


def _kinds(instruction: Instruction) -> tuple[str, str]:
    """Of the result and of the operands: .f32.bf16 says both, .f32 that they are the same."""
    named = [m for m in instruction.modifiers if m in KINDS or m.partition("x")[0] in ("bf16", "f16", "f32")]
    return named[0], named[-1]


def _number_or_nan(choose: Callable, propagate: Callable) -> Callable[[Instruction], Callable]:
    return lambda instruction: propagate if "NaN" in instruction.modifiers else choose


ALWAYS: dict[str, Callable] = {
    "add": operator.add, "sub": operator.sub, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
}  # fmt: skip
MIN_OR_MAX = {"min": _number_or_nan(np.fmin, np.minimum), "max": _number_or_nan(np.fmax, np.maximum)}


@operation(*ALWAYS, *MIN_OR_MAX)
def _two_operands(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, a, b = instruction.operands
    kind, of_a = _kinds(instruction)
    opcode = instruction.opcode
    compute = ALWAYS[opcode] if opcode in ALWAYS else MIN_OR_MAX[opcode](instruction)
    put(program, target, compute(value_of(program, a, of_a), value_of(program, b, kind)), kind, mask)


@operation("mul", "mad", "fma")
def _multiply(program: Program, instruction: Instruction, mask: Mask) -> None:
    """a * b [+ c]: integers whole (wide) or their low or high half, floats rounded once."""
    target, a, b, *addend = instruction.operands
    kind, of_factors = _kinds(instruction)
    part = instruction.modifiers[0]
    exact = KINDS[WIDER[kind]] if part in ("wide", "hi") else KINDS[kind] if kind[0] in "us" else np.float64
    factors = [value_of(program, each, of_factors).astype(exact) for each in (a, b)]
    result = factors[0] * factors[1]
    if part == "hi":
        result = result >> result.dtype.type(8 * np.dtype(KINDS[kind]).itemsize)
    if part == "wide":
        kind = WIDER[kind]
    if addend:
        result = result + value_of(program, addend[0], kind).astype(exact)
    put(program, target, result.astype(np.float32) if exact == np.float64 else result, kind, mask)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    whole = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return np.where((a < 0) != (b < 0), -whole, whole)


@operation("div")
def _divide(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, a, b = instruction.operands
    kind, _ = _kinds(instruction)
    put(program, target, _quotient(value_of(program, a, kind), value_of(program, b, kind)), kind, mask)


ONE_OPERAND: dict[str, Callable] = {"neg": operator.neg, "abs": np.abs, "not": operator.invert, "ex2": np.exp2}


@operation(*ONE_OPERAND)
def _one_operand(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, a = instruction.operands
    kind, _ = _kinds(instruction)
    put(program, target, ONE_OPERAND[instruction.opcode](value_of(program, a, kind)), kind, mask)


@operation("popc")
def _count_bits(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, a = instruction.operands
    bytes_N = np.ascontiguousarray(value_of(program, a, instruction.modifiers[-1])).view(np.uint8)
    bits_N = np.unpackbits(bytes_N.reshape(program.threads, -1), axis=1).sum(axis=1)
    put(program, target, bits_N, "u32", mask)


@operation("shl", "shr")
def _shift(program: Program, instruction: Instruction, mask: Mask) -> None:
    """By more than there are bits: 0, or all sign."""
    target, a, b = instruction.operands
    kind = np.dtype(KINDS[instruction.modifiers[-1]])
    bits = 8 * kind.itemsize
    value, count = program.read(a, kind), program.read(b, np.uint32)
    inside = np.minimum(count, bits - 1).astype(kind)
    shifted = value << inside if instruction.opcode == "shl" else value >> inside
    keeps = (count < bits) | (kind.kind == "i")
    program.write(target, np.where(keeps, shifted, kind.type(0)), mask)


@operation("bfe")
def _extract_bits(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, a, position, length = instruction.operands
    kind = np.dtype(KINDS[instruction.modifiers[-1]])
    bits = 8 * kind.itemsize
    above = kind.type(bits - position.value - length.value)
    program.write(target, (program.read(a, kind) << above) >> kind.type(bits - length.value), mask)


@operation("prmt")
def _permute_bytes(program: Program, instruction: Instruction, mask: Mask) -> None:
    """Four of the eight bytes of two words, each chosen by three bits; a fourth asks for its sign alone."""
    target, *words, selector = instruction.operands
    bytes_N8 = np.stack([program.read(word, np.uint32) for word in words], axis=1).view(np.uint8)
    chosen_N4 = (program.read(selector, np.uint32)[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & np.uint32(15)
    bytes_N4 = np.take_along_axis(bytes_N8, (chosen_N4 & 7).astype(np.int64), axis=1)
    sign_N4 = (bytes_N4.view(np.int8) >> 7).view(np.uint8)
    program.write(target, np.where(chosen_N4 & 8, sign_N4, bytes_N4).reshape(-1).view(np.uint32), mask)


RELATIONS: dict[str, Callable] = {
    "eq": operator.eq, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


@operation("setp")
def _compare(program: Program, instruction: Instruction, mask: Mask) -> None:
    """Ordered relations are false where either is NaN, those that end in u true."""
    target, a, b = instruction.operands
    relation, kind = instruction.modifiers[0], instruction.modifiers[-1]
    a_N, b_N = value_of(program, a, kind), value_of(program, b, kind)
    nan_N = np.isnan(a_N) | np.isnan(b_N) if a_N.dtype.kind == "f" else np.False_
    if relation in ("num", "nan"):
        result_N = nan_N == (relation == "nan")
    elif relation[:2] == "ne":
        result_N = (a_N != b_N) & ~nan_N
    else:
        result_N = RELATIONS[relation[:2]](a_N, b_N)
    program.write(target, result_N | nan_N if relation.endswith("u") else result_N, mask)


@operation("selp")
def _select(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, a, b, condition = instruction.operands
    kind = KINDS[instruction.modifiers[-1]]
    chosen_N = np.where(program.read(condition, np.bool_), program.read(a, kind), program.read(b, kind))
    program.write(target, chosen_N, mask)


@operation("mov")
def _move(program: Program, instruction: Instruction, mask: Mask) -> None:
    """A copy; or several registers as one, or one as several, the lowest bits first."""
    target, source = instruction.operands
    kind = np.dtype(KINDS[instruction.modifiers[-1]])
    if isinstance(target, tuple):
        part = np.dtype(f"u{kind.itemsize // len(target)}")
        parts_NP = np.ascontiguousarray(program.read(source, kind)).view(part).reshape(program.threads, -1)
        for each, part_N in zip(target, parts_NP.T, strict=True):
            program.write(each, part_N, mask)
    elif isinstance(source, tuple):
        part = np.dtype(f"u{kind.itemsize // len(source)}")
        parts_NP = np.stack([program.read(each, part) for each in source], axis=1)
        program.write(target, parts_NP.reshape(-1).view(kind), mask)
    else:
        program.write(target, program.read(source, kind), mask)


@operation("cvta")
def _same_address(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, source = instruction.operands
    program.write(target, program.read(source, np.uint64), mask)


@operation("cvt")
def _convert(program: Program, instruction: Instruction, mask: Mask) -> None:
    """Between any two of the types; two floats to one pair, the first one high."""
    kind, of_sources = _kinds(instruction)
    target, *sources = instruction.operands
    values = [value_of(program, each, of_sources) for each in reversed(sources)]
    put(program, target, values[0] if len(values) == 1 else np.stack(values, axis=1), kind, mask)


def _vector(instruction: Instruction, operand: Operand) -> tuple[tuple[Operand, ...], str, int]:
    """The registers of a load or store, their type, and the bytes of each."""
    kind = instruction.modifiers[-1]
    return operand if isinstance(operand, tuple) else (operand,), kind, np.dtype(KINDS[kind]).itemsize


@operation("ld")
def _load(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, source = instruction.operands
    targets, kind, width = _vector(instruction, target)
    assert isinstance(source, Address)
    if instruction.modifiers[0] == "param":
        program.write(target, program.read(source.base, KINDS[kind]), mask)
        return
    lanes = slice(None) if mask is None else mask
    addresses = program.address(source)[lanes]
    if instruction.modifiers[0] == "global":
        values_NW = program.memory.load(addresses, len(targets) * width, program.number)
    else:
        values_NW = program.shared.load(addresses, len(targets) * width)
    for number, each in enumerate(targets):
        loaded_N = np.zeros(program.threads, KINDS[kind])
        part_NW = np.ascontiguousarray(values_NW[:, number * width : (number + 1) * width])
        loaded_N[lanes] = part_NW.view(KINDS[kind])[:, 0]
        program.write(each, loaded_N, mask)


@operation("st")
def _store(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, source = instruction.operands
    sources, kind, width = _vector(instruction, source)
    lanes = slice(None) if mask is None else mask
    parts = [np.ascontiguousarray(program.read(each, KINDS[kind])[lanes]) for each in sources]
    values_NW = np.concatenate([part.view(np.uint8).reshape(-1, width) for part in parts], axis=1)
    if instruction.modifiers[0] == "global":
        program.memory.store(program.address(target)[lanes], values_NW, program.number)
    else:
        program.shared.store(program.address(target)[lanes], values_NW)


def _whole_warps(program: Program, instruction: Instruction, members: Operand, mask: Mask) -> None:
    """Every kernel of ours exchanges among all lanes of a warp, or of none."""
    if mask is not None and not (_by_warp(mask).all(1) == _by_warp(mask).any(1)).all():
        raise UnknownInstruction(f"{instruction.text}: a part of a warp")
    if not (program.read(members, np.uint32) == 0xFFFFFFFF).all():
        raise UnknownInstruction(f"{instruction.text}: not of all lanes")


def _by_warp(values_N: np.ndarray) -> np.ndarray:
    return values_N.reshape(-1, 32)


@operation("shfl")
def _shuffle(program: Program, instruction: Instruction, mask: Mask) -> None:
    """shfl.sync.mode.b32 target, source, offset, clamp, members; a lane without a partner keeps its own."""
    target, source, offset, clamp, members = instruction.operands
    _whole_warps(program, instruction, members, mask)
    offset_N, clamp_N = (program.read(each, np.uint32).astype(np.int64) for each in (offset, clamp))
    segment_N, limit_N = (clamp_N >> 8) & 31, clamp_N & 31
    first_N = program.lanes & segment_N
    last_N = first_N | (limit_N & ~segment_N)
    from_N = {
        "up": program.lanes - offset_N,
        "bfly": program.lanes ^ offset_N,
        "idx": first_N | (offset_N & ~segment_N & 31),
    }[instruction.modifiers[1]]
    has_partner_N = from_N >= last_N if instruction.modifiers[1] == "up" else from_N <= last_N
    from_N = np.where(has_partner_N, from_N, program.lanes)
    shuffled_WL = np.take_along_axis(_by_warp(program.read(source, np.uint32)), _by_warp(from_N), axis=1)
    program.write(target, shuffled_WL.reshape(-1), mask)


@operation("redux")
def _reduce_warp(program: Program, instruction: Instruction, mask: Mask) -> None:
    target, source, members = instruction.operands
    _whole_warps(program, instruction, members, mask)
    kind = KINDS[instruction.modifiers[-1]]
    reduce = {"add": np.add, "max": np.maximum, "min": np.minimum}[instruction.modifiers[1]].reduce
    result_W1 = reduce(_by_warp(program.read(source, kind)), axis=1, dtype=kind, keepdims=True)
    program.write(target, np.repeat(result_W1, 32, axis=1).reshape(-1), mask)


@operation("elect")
def _elect(program: Program, instruction: Instruction, mask: Mask) -> None:
    (leader, is_leader), members = instruction.operands
    _whole_warps(program, instruction, members, mask)
    program.write(leader, np.zeros(program.threads, np.uint32), mask)
    program.write(is_leader, program.lanes == 0, mask)


@operation("fence")
def _fence(program: Program, instruction: Instruction, mask: Mask) -> None:
    """Memory is in order here."""
