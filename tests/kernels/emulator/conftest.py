"""These tests execute compiled Triton kernels; they need Triton, and it not interpreting."""

import importlib.util
import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1" or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    pass
