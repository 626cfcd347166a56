"""The text of a compiled kernel as instructions: labels resolved, names made unique, operands taken apart.

PTX is the instruction set that Triton compiles to and that NVIDIA documents ("PTX ISA", version 9).
"""

import re
from dataclasses import dataclass, field

import numpy as np

REGISTER_OF_BITS = {"8": np.uint8, "16": np.uint16, "32": np.uint32, "64": np.uint64}


class UnknownInstruction(ValueError):
    """An instruction, or a form of one, that the emulator does not have: better than to guess what it does."""


@dataclass(frozen=True)
class Register:
    """A register by its name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A number as written: an integer, or the bits of a float."""

    value: int


@dataclass(frozen=True)
class Symbol:
    """Shared memory, a parameter or a special register, by its name."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset], and for tensor copies [base, {coordinates}]."""

    base: "Operand"
    offset: int
    coordinates: "tuple[Operand, ...] | None"


Operand = Register | Constant | Symbol | Address | tuple  # a tuple is a {vector}


@dataclass
class Instruction:
    """opcode.modifiers operands, under a guard."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str
    target: int = -1  # of a branch


@dataclass
class Kernel:
    """A compiled kernel."""

    name: str
    threads: int
    parameters: list[tuple[str, int]]  # name and bytes
    registers: dict[str, type]
    instructions: list[Instruction] = field(default_factory=list)


def parse(text: str) -> Kernel:
    """The one kernel in `text`; ValueError for what is not understood."""
    text = re.sub(r"//[^\n]*", "", text)
    head = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)\s*(.*?)\{(.*)\n\}", text, re.DOTALL)
    if head is None:
        raise ValueError("no kernel in this text")
    name, parameters, directives, body = head.groups()
    threads = re.search(r"\.reqntid\s+(\d+)", directives)
    if threads is None:
        raise ValueError(f"{name} does not say how many threads it has")
    kernel = Kernel(name, int(threads[1]), [_parameter(each) for each in parameters.split(",") if each.strip()], {})
    _Parser(kernel).read(body)
    return kernel


def _parameter(text: str) -> tuple[str, int]:
    words = text.split()
    if array := re.search(r"(\w+)\[(\d+)\]", text):
        return array[1], int(array[2])
    return words[-1], int(words[1].removeprefix(".u").removeprefix(".b").removeprefix(".s")) // 8


class _Parser:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.scopes: list[str] = []  # of the { } that inline assembly opens
        self.opened = 0
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[Instruction, list[str]]] = []

    def read(self, body: str) -> None:
        for line in self._statements(body):
            if line == "{":
                self.opened += 1
                self.scopes.append(f"{self.opened}:")
            elif line == "}":
                self.scopes.pop()
            elif label := re.fullmatch(r"([\w$]+):", line):
                self.labels["".join(self.scopes) + label[1]] = len(self.kernel.instructions)
            elif line.startswith(".reg"):
                self._declare(line)
            elif not line.startswith("."):
                self.kernel.instructions.append(self._instruction(line))
        for instruction, names in self.branches:
            instruction.target = next(self.labels[name] for name in names if name in self.labels)

    @staticmethod
    def _statements(body: str) -> list[str]:
        """Statements, labels, and braces that stand alone; a vector's braces stay in their statement."""
        statements = []
        for line in body.splitlines():
            line = line.strip()
            if label := re.match(r"([\w$]+:)\s*(.*)", line):
                statements.append(label[1])
                line = label[2]
            if line in ("{", "}"):
                statements.append(line)
            elif line.startswith((".loc", ".file")):
                continue
            else:
                statements += [part.strip() for part in line.split(";") if part.strip()]
        return statements

    def _declare(self, line: str) -> None:
        bits, names = re.fullmatch(r"\.reg\s+\.(?:pred|[a-z]+(\d+))\s+(.*)", line).groups()
        kind = REGISTER_OF_BITS[bits] if bits else np.bool_
        for name in names.split(","):
            name = name.strip()
            many = re.fullmatch(r"([%\w]+)<(\d+)>", name)
            for each in [f"{many[1]}{number}" for number in range(int(many[2]))] if many else [name]:
                self.kernel.registers["".join(self.scopes) + each] = kind

    def _instruction(self, line: str) -> Instruction:
        guard, negated, text = None, False, line
        if match := re.match(r"@(!?)([%\w]+)\s+(.*)", text):
            negated, guard, text = bool(match[1]), self._operand(match[2]), match[3]
        opcode, rest = re.match(r"(\S+)\s*(.*)", text).groups()
        parts = opcode.split(".")
        if parts[0] == "bra":
            instruction = Instruction("bra", (), (), guard, negated, line)
            scopes = ["".join(self.scopes[:depth]) + rest.strip() for depth in range(len(self.scopes), -1, -1)]
            self.branches.append((instruction, scopes))
            return instruction
        operands = tuple(self._operand(each) for each in _split(rest))
        return Instruction(parts[0], tuple(parts[1:]), operands, guard, negated, line)

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text.startswith("{"):
            return tuple(self._operand(each) for each in _split(text[1:-1]))
        if text.startswith("["):
            base, *coordinates = _split(text[1:-1])
            name, _, offset = base.partition("+")
            inner = self._operand(coordinates[0]) if coordinates else None
            return Address(self._operand(name), int(offset or "0", 0), inner)
        if "|" in text:
            return tuple(self._operand(each) for each in text.split("|"))
        if match := re.fullmatch(r"0[fFdD]([0-9A-Fa-f]+)", text):
            return Constant(int(match[1], 16))
        if match := re.fullmatch(r"(-?(?:0x[0-9A-Fa-f]+|\d+))U?", text):
            return Constant(int(match[1], 0))
        for depth in range(len(self.scopes), -1, -1):
            name = "".join(self.scopes[:depth]) + text
            if name in self.kernel.registers:
                return Register(name)
        return Symbol(text)


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [part for part in (*parts, current) if part.strip()]
