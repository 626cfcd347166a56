"""The real code that the data benchmarks run on, found through the environment and never shipped."""

import os
from pathlib import Path

VARIABLE = "MOE_CODEGEN_CORPUS"
SKIPPED = (
    f"skipped: {VARIABLE} names no folder of LANGUAGE.parquet files; "
    "`moe-codegen data corpus benchmarks/packages.toml FOLDER` makes one"
)


def find_corpus() -> Path | None:
    """The folder that the environment names, or None."""
    folder = Path(os.environ.get(VARIABLE, ""))
    return folder if os.environ.get(VARIABLE) and any(folder.glob("*.parquet")) else None
