"""Where our ops follow torch.autocast: at their boundary, as `F.linear` does."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that the operands of a product with `x` are to be cast to; None while autocast is off, and for fp64."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
