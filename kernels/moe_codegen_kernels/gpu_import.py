"""The one place that imports the Triton kernels: on the first call with CUDA tensors, not before.

Triton launches on the current device, so callers make their tensors' device current first.
"""

import importlib
from types import ModuleType


def gpu_module(name: str) -> ModuleType:
    """`moe_codegen_kernels.gpu.<name>`, or what to install when triton is missing."""
    try:
        return importlib.import_module(f"moe_codegen_kernels.gpu.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError(
            'the CUDA kernels need triton: pip install "moe-codegen[gpu]", '
            'or choose experts_implementation="grouped_mm"'
        ) from error
