"""MultiPL-E's rows, with solutions, broken twins and its own results; reached through an environment variable."""

import os
from pathlib import Path

import pytest


def multiple() -> Path:
    """The folder that MOE_CODEGEN_MULTIPLE names; the test is skipped without it."""
    named = os.environ.get("MOE_CODEGEN_MULTIPLE")
    if not named:
        pytest.skip("MOE_CODEGEN_MULTIPLE names no folder with MultiPL-E's rows and solutions")
    return Path(named)
