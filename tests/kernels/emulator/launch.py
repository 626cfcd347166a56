"""Launches that run: each kernel is compiled for its GPU as always, and its PTX executed here, on CPU tensors."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.ahead_of_time import target_of
from benchmarks.launch_rules import check_launch
from moe_codegen_kernels.gpu.no_device import driver_without_device
from moe_codegen_kernels.tiles import SHARED_MEMORY_LIMIT
from tests.kernels.emulator import copies, instructions, tensor_cores  # noqa: F401  they register operations
from tests.kernels.emulator.copies import TensorMap
from tests.kernels.emulator.machine import Program, check
from tests.kernels.emulator.memory import GlobalMemory
from tests.kernels.emulator.ptx import Kernel, parse

BEFORE_ARGUMENTS = 9  # of what Triton hands a launcher: grid, stream, function, metadata and hooks
ROW_BYTES = {0: 16, 1: 32, 2: 64, 3: 128}  # by Triton's number of a swizzle
PARAMETER_SPACE = 2**20  # where tensor maps have their addresses, of 32 bits


@functools.cache
def _kernel(text: str) -> Kernel:
    kernel = parse(text)
    check(kernel)
    return kernel


@dataclass(frozen=True)
class Emulated:
    """A launch that ran: the kernel's name, and the bytes it read by the address of the storage they lie in."""

    name: str
    loaded: dict[int, int]


@contextlib.contextmanager
def emulating(architecture: str, edit: Callable[[str], str] = str) -> Iterator[list[Emulated]]:
    """Within, launches compile for `architecture`, PTX passes through `edit`, and programs run here, on CPU tensors."""
    launched: list[tuple[Any, tuple[Any, ...]]] = []
    emulated: list[Emulated] = []
    run = JITFunction.run

    def run_and_execute(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=warmup, **options)
        metadata, given = launched.pop()
        check_launch(metadata, given[:3], given)
        memory = _execute(kernel, _kernel(edit(kernel.asm["ptx"])), given[:3], given[BEFORE_ARGUMENTS:])
        emulated.append(Emulated(metadata.name, memory.loaded))
        return kernel

    JITFunction.run = run_and_execute
    try:
        with driver_without_device(
            target_of(architecture), SHARED_MEMORY_LIMIT[architecture], lambda *launch: launched.append(launch)
        ):
            yield emulated
    finally:
        JITFunction.run = run


def _execute(compiled: Any, kernel: Kernel, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> GlobalMemory:
    """Every program of a launch, the last first: none may need what another does."""
    values: list[Any] = []
    tensors: list[torch.Tensor] = []
    tensor_maps = iter(compiled.metadata.tensordesc_meta or [])
    for argument, kind in zip(arguments, compiled.src.signature.values(), strict=True):
        if isinstance(argument, TensorDescriptor):
            values += [_tensor_map(argument, next(tensor_maps)), *argument.shape, *argument.strides]
            tensors.append(argument.base)
        elif isinstance(argument, torch.Tensor):
            values.append(argument.data_ptr())
            tensors.append(argument)
        elif kind != "constexpr":
            values.append(int(argument))
    values += [0] * (len(kernel.parameters) - len(values))  # scratch memory, of which there is none
    parameters: dict[Any, Any] = {}
    for number, ((name, size), value) in enumerate(zip(kernel.parameters, values, strict=True)):
        if isinstance(value, TensorMap):
            parameters[name] = PARAMETER_SPACE + 128 * number
            parameters[parameters[name]] = value
        else:
            parameters[name] = value % 2 ** (8 * size)
    storages = [x.untyped_storage() for x in tensors]
    memory = GlobalMemory([(storage.data_ptr(), storage.nbytes()) for storage in storages])
    with np.errstate(all="ignore"):
        for z, y, x in itertools.product(*(range(extent - 1, -1, -1) for extent in reversed(grid))):
            Program(kernel, (x, y, z), grid, parameters, memory, compiled.metadata.shared).run()
    return memory


def _tensor_map(descriptor: TensorDescriptor, compiled: dict[str, Any]) -> TensorMap:
    return TensorMap(
        descriptor.base.data_ptr(),
        descriptor.base.element_size(),
        list(descriptor.shape),
        list(descriptor.strides),
        list(compiled["block_size"]),
        ROW_BYTES[compiled["swizzle"]],
    )
