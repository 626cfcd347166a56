"""Named arrays on disk, between the passes of a verb."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays uncompressed, as `np.load` reads them."""
    named: dict[str, Any] = dict(arrays)
    np.savez(path, **named)
