"""These tests run the Triton kernels in Triton's interpreter, on CPU tensors.

Triton decides between interpreter and compiler when it is imported, so they need a process of their own:
TRITON_INTERPRET=1 pytest tests/kernels/interpreter
"""

import importlib.util
import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch):
    from tests.kernels.interpreter.bfloat16 import repair

    repair(monkeypatch)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Uninitialised memory is NaN, or the largest integer: whoever reads it is found out."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
