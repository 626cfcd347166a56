"""A Triton driver that compiles every launch and runs none: launchers then run unchanged on CPU tensors.

`moe-codegen tune` compiles with it in processes beside the one that times; tests and benchmarks compile with it for
GPUs that are not there. Tensors are never touched, so their memory is never committed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

OnLaunch = Callable[[Any, tuple[Any, ...]], None]  # (the compiled kernel's metadata, grid and arguments)


class _NoDriver:
    """The part of a Triton driver that launching touches; a device is named after its target."""

    def __init__(self, target: GPUTarget, shared_memory: int, on_launch: OnLaunch | None) -> None:
        self.target = target
        self.shared_memory = shared_memory
        self.on_launch = on_launch
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        if self.on_launch is None:
            return lambda *arguments: None
        on_launch = self.on_launch
        return lambda *arguments: on_launch(metadata, arguments)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {"max_shared_mem": self.shared_memory}

    def load_binary(self, *arguments: Any) -> tuple[None, int, int, int, int]:
        return None, 0, 0, 0, 1024

    def unload_module(self, module: None) -> None:
        pass


@contextlib.contextmanager
def driver_without_device(target: GPUTarget, shared_memory: int, on_launch: OnLaunch | None = None) -> Iterator[None]:
    """Within, a launch compiles for `target` and does nothing but `on_launch`.

    A kernel that needs more than `shared_memory` bytes raises Triton's OutOfResources, as on a GPU.
    """
    active = triton.runtime.driver._active
    triton.runtime.driver.set_active(_NoDriver(target, shared_memory, on_launch))
    try:
        yield
    finally:
        triton.runtime.driver._active = active


def current_gpu() -> tuple[GPUTarget, int]:
    """What Triton compiles for on the current GPU, and the bytes of shared memory a program may use there."""
    driver = triton.runtime.driver.active
    properties = driver.utils.get_device_properties(driver.get_current_device())
    return driver.get_current_target(), properties["max_shared_mem"]
