"""The numbers of every Triton kernel on CPU tensors, in either of two ways, each in a process of its own:

TRITON_INTERPRET=1 pytest tests/kernels/numerics    in Triton's interpreter, which knows no machine code
KERNELS_EMULATE=1 pytest tests/kernels/numerics     compiled for sm_90, and what is compiled executed by ../emulator

Triton decides between interpreter and compiler when it is imported.
"""

import importlib.util
import os

import pytest

INTERPRETED, EMULATED = (os.environ.get(name) == "1" for name in ("TRITON_INTERPRET", "KERNELS_EMULATE"))

if INTERPRETED == EMULATED or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
elif EMULATED:
    collect_ignore = ["test_bfloat16.py"]


@pytest.fixture(autouse=True)
def _kernels_run(monkeypatch, poisoned_memory):
    if EMULATED:
        from tests.kernels.emulator.launch import emulating

        with emulating("sm_90"):
            yield
    else:
        from tests.kernels.numerics.interpreter import repair

        repair(monkeypatch)
        yield
