"""The kernels compiled by their own launchers for a GPU that is not there, and what the machine code shows.

`compiling_for("sm_90")` gives Triton a driver that compiles every launch and runs none, and records each. A launch
that a real driver would refuse raises (`launch_rules.py`). `Loop` reads the main loop out of the disassembly: its
instructions, what the tensor cores do in it, and whether it spills.
"""

import contextlib
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.launch_rules import check_launch
from benchmarks.shapes import LayerShape
from moe_codegen_kernels.gpu import layer
from moe_codegen_kernels.gpu.no_device import driver_without_device
from moe_codegen_kernels.quantised_weights import BLOCK, STORED, Quantised
from moe_codegen_kernels.records import RoutingPlan
from moe_codegen_kernels.tiles import SHARED_MEMORY_LIMIT, Gpu

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FMA_PER_CLOCK = {"sm_80": 1024, "sm_89": 512, "sm_90": 2048, "sm_100": 4096, "sm_120": 512}  # bf16, one SM
# Of memory, one SM: A100 80 GB, L40S, H100 SXM, B200, RTX 5090.
BYTES_PER_CLOCK = {"sm_80": 13.4, "sm_89": 2.4, "sm_90": 14.5, "sm_100": 29.0, "sm_120": 4.4}
PROCESSORS = {"sm_80": 108, "sm_89": 142, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304}


def target_of(architecture: str) -> GPUTarget:
    """Triton's name for an architecture of ours."""
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


def gpu_without_device(architecture: str) -> Gpu:
    """A GPU to hand to launchers; no cache entry is named after it."""
    return Gpu(architecture, PROCESSORS[architecture], f"absent {architecture}")


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel as Triton compiled it, and its grid."""

    kernel: Any
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.metadata.name


@dataclass
class Recorder:
    """What was launched, and how many kernels had to be compiled for it."""

    launches: list[Launch] = field(default_factory=list)

    @property
    def kernels(self) -> dict[str, Any]:
        """The distinct compiled kernels, by their hash."""
        return {launch.kernel.hash: launch.kernel for launch in self.launches}


def without_device(architecture: str, checks: bool = True) -> contextlib.AbstractContextManager[None]:
    """Within, a launch compiles for `architecture`, is checked by CUDA's rules if it `checks`, and does nothing."""
    checked = checks and not architecture.startswith("gfx")
    on_launch = _check if checked else None
    return driver_without_device(target_of(architecture), SHARED_MEMORY_LIMIT[architecture], on_launch)


def _check(metadata: Any, arguments: tuple[Any, ...]) -> None:
    check_launch(metadata, arguments[:3], arguments)


@contextlib.contextmanager
def compiling_for(architecture: str) -> Iterator[Recorder]:
    """Within, a launch compiles for `architecture`, is checked and recorded, and does nothing."""
    recorder = Recorder()
    run = JITFunction.run

    def run_and_record(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=warmup, **options)
        recorder.launches.append(Launch(kernel, tuple(grid)))
        return kernel

    JITFunction.run = run_and_record
    try:
        with without_device(architecture):
            yield recorder
    finally:
        JITFunction.run = run


def layer_step(
    architecture: str, shape: LayerShape, tokens: int, dtype: torch.dtype, trains: bool
) -> Callable[[], None]:
    """Every launch of one layer, forward and (if it `trains`) backward, on tensors that nobody touches."""
    gpu = gpu_without_device(architecture)
    hidden_TD = torch.empty(tokens, shape.model, dtype=dtype)
    ids_TK = torch.empty(tokens, shape.top_k, dtype=torch.int64)
    weights_TK = torch.empty(tokens, shape.top_k)
    experts = shape.weights(dtype, "cpu")
    needs = [True, True, True, shape.bias, True, shape.bias]

    def step() -> None:
        _, h_RG, *plan = layer.expert_ffn(hidden_TD, ids_TK, weights_TK, experts, trains, trains, gpu)
        if trains:
            layer.expert_ffn_backward(hidden_TD, hidden_TD, weights_TK, experts, h_RG, RoutingPlan(*plan), needs, gpu)

    return step


def compile_layer(architecture: str, shape: LayerShape, tokens: int, dtype: torch.dtype, trains: bool) -> Recorder:
    """What `layer_step` launches."""
    step = layer_step(architecture, shape, tokens, dtype, trains)
    with compiling_for(architecture) as recorder:
        step()
    return recorder


def compile_quantised_layer(
    architecture: str, shape: LayerShape, tokens: int, dtype: torch.dtype, bits: int
) -> Recorder:
    """What a layer of `bits`-bit weights launches for few tokens: rows in one group of 8 bits, groups of 32 of 4."""
    gpu = gpu_without_device(architecture)

    def empty(rows: int, columns: int) -> Quantised:
        stored = torch.empty(shape.experts, rows, columns * bits // 8, dtype=STORED[bits])
        groups = 1 if bits == 8 else columns // BLOCK
        return Quantised(stored, torch.empty(shape.experts, rows, groups, dtype=torch.bfloat16))

    plain = shape.weights(dtype, "cpu")
    experts = plain._replace(up=empty(shape.grown, shape.model), down=empty(shape.model, shape.hidden))
    hidden_TD = torch.empty(tokens, shape.model, dtype=dtype)
    ids_TK, weights_TK = torch.empty(tokens, shape.top_k, dtype=torch.int64), torch.empty(tokens, shape.top_k)
    with compiling_for(architecture) as recorder:
        out_TD = layer.quantised_expert_ffn(hidden_TD, ids_TK, weights_TK, experts, gpu)
    assert out_TD is not None, "not read as stored"
    return recorder


def constant_of(kernel: Any, name: str) -> Any:
    """The value that a compiled kernel was given for its argument `name`, a `tl.constexpr`."""
    return kernel.src.constants[(kernel.src.fn.arg_names.index(name),)]


@dataclass(frozen=True)
class Loop:
    """The main loop of a compiled kernel, and its resources.

    On sm_100 one thread issues the products (UTCHMMA) for all; the loop is the one its warp walks.
    """

    kernel: str
    tensor_core: str  # the instruction that does the products
    registers: int
    stack: int  # bytes of local memory a thread
    shared: int  # bytes
    instructions: int  # a warp issues in one iteration
    local: int  # loads and stores of local memory among them
    copies: int  # TMA loads (UTMALDG) or asynchronous copies (LDGSTS) among them
    fma: int  # multiply-adds the program's tensor cores do in one iteration
    warps: int

    def issue_fraction(self, architecture: str) -> float:
        """Cycles to issue the loop over cycles its products take: below 1, the tensor cores are the limit."""
        return self.issue_clocks / (self.fma / FMA_PER_CLOCK[architecture])

    @property
    def issue_clocks(self) -> float:
        """Cycles in which an SM's four schedulers issue one iteration."""
        return self.instructions * self.warps / 4


@dataclass
class _Block:
    instructions: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


def main_loop(kernel: Any) -> Loop:
    """Disassemble `kernel` and find the cycle through its tensor-core instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        text = _output("nvdisasm", "-c", cubin.name).replace("UTCHMMA", f"UTCHMMA.{_extents_of_sm_100(kernel)}")
        usage = _output("cuobjdump", "-res-usage", cubin.name)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    warps = kernel.metadata.num_warps
    cycle = _densest_cycle(_blocks(text), warps)
    tensor_core = re.search(r"\b(?:HGMMA|HMMA|UTCHMMA)\b\S*", text)
    return Loop(
        kernel=kernel.metadata.name,
        tensor_core=tensor_core[0] if tensor_core else "none",
        registers=numbers["REG"],
        stack=numbers["STACK"] + numbers["LOCAL"],
        shared=kernel.metadata.shared,
        instructions=len(cycle),
        local=sum(i.startswith(("LDL", "STL")) for i in cycle),
        copies=sum(i.startswith(("UTMALDG", "LDGSTS")) for i in cycle),
        fma=_multiply_adds(cycle, warps),
        warps=warps,
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([NVIDIA_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _extents_of_sm_100(kernel: Any) -> str:
    """MxNxK of tcgen05.mma, which SASS does not hold, from the instruction descriptor in PTX; "none" without one.

    Bits 17 .. 22 are N / 8, bits 24 .. 28 are M / 16 (PTX ISA, "Instruction descriptor"); K is 16 for 16-bit elements.
    """
    ptx = kernel.asm["ptx"]
    extents = set()
    for register in set(re.findall(r"tcgen05\.mma\S* \[.*?\], (?:%rd\d+|\[.*?\]), %rd\d+, (%r\d+),", ptx)):
        for value in re.findall(rf"mov\.b32\s+{register}, (\d+);", ptx):
            extents.add((16 * (int(value) >> 24 & 31), 8 * (int(value) >> 17 & 63), 16))
    assert len(extents) <= 1, f"{kernel.metadata.name} multiplies in {extents}"
    return "x".join(map(str, extents.pop())) if extents else "none"


def _multiply_adds(instructions: list[str], warps: int) -> int:
    """Multiply-adds a program has done when its warps have issued these."""
    total = 0
    for instruction in instructions:
        if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", instruction):
            total += math.prod(map(int, match.groups())) * warps // 4  # four warps issue it together
        elif match := re.match(r"UTCHMMA\.(\d+)x(\d+)x(\d+)", instruction):
            total += math.prod(map(int, match.groups()))  # one thread issues it for all
        elif match := re.match(r"HMMA\.(\d{2})(\d)(\d{1,2})\.", instruction):
            total += math.prod(map(int, match.groups())) * warps
    return total


def _blocks(text: str) -> dict[str, _Block]:
    """Basic blocks of the disassembly by label, in program order, each with where control may go next."""
    blocks = {"entry": _Block()}
    current, split = blocks["entry"], 0
    for line in text.splitlines():
        if match := re.match(r"(\.L_x_\d+):", line.strip()):
            if not _leaves(current):
                current.next.append(match[1])
            current = blocks[match[1]] = _Block()
            continue
        match = re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line)
        if not match:
            continue
        instruction = match[1].strip().strip("{}").strip()
        conditional, bare = _without_predicate(instruction)
        current.instructions.append(bare)
        if jump := re.match(r"BRA.*`\((\.L_x_\d+)\)", bare):
            current.next.append(jump[1])
            if conditional:
                split += 1
                name = f"after {split}"
                current.next.append(name)
                current = blocks[name] = _Block()
    return blocks


def _without_predicate(instruction: str) -> tuple[bool, str]:
    match = re.match(r"@!?U?P\w+\s+(.*)", instruction)
    bare = match[1] if match else instruction
    # A branch can also name its predicate as an operand: BRA.U !UP0, `(.L_x_1)
    return bool(match) or bool(re.match(r"BRA\S*\s+!?U?P\w+,", bare)), bare


def _leaves(block: _Block) -> bool:
    """Whether the block ends where control does not fall through."""
    if not block.instructions:
        return False
    conditional, last = _without_predicate(block.instructions[-1])
    return not conditional and last.startswith(("BRA", "EXIT", "RET"))


def _densest_cycle(blocks: dict[str, _Block], warps: int) -> list[str]:
    """The cycle with most multiply-adds an instruction, of the shortest through one or two blocks that have any.

    Two, because on sm_100 each product of a loop is a block of its own, which only the issuing thread enters.
    """
    stops = [name for name, block in blocks.items() if _multiply_adds(block.instructions, warps) > 0]
    way = {(start, end): _way(blocks, start, end) for start in stops for end in stops}
    cycles = [
        way[one, other] + (way[other, one] if one != other else [])
        for one, other in way
        if way[one, other] and way[other, one]
    ]
    return max(cycles, key=lambda cycle: _multiply_adds(cycle, warps) / len(cycle), default=[])


def _way(blocks: dict[str, _Block], start: str, end: str) -> list[str]:
    """The fewest instructions from the start of one block to the start of another, or of itself; none: no way."""
    cost = {start: 0}
    path = {start: list(blocks[start].instructions)}
    frontier = [start]
    best: list[str] = []
    while frontier:
        name = min(frontier, key=cost.__getitem__)
        frontier.remove(name)
        for follower in blocks[name].next:
            if follower == end:
                if not best or len(path[name]) < len(best):
                    best = path[name]
            elif follower in blocks:
                price = cost[name] + len(blocks[follower].instructions)
                if price < cost.get(follower, 10**9):
                    cost[follower] = price
                    path[follower] = path[name] + blocks[follower].instructions
                    frontier.append(follower)
    return best
