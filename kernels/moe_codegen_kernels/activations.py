"""The activations the expert kernels know, in plain torch: f(x) and dL/dx = dL/df * f'(x)."""

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("gelu_tanh", "gelu", "silu", "relu")


def activate(activation: str, x: Tensor) -> Tensor:
    """f(x), elementwise; `activation` is one of `ACTIVATIONS`."""
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu":
        return F.gelu(x)
    if activation == "silu":
        return F.silu(x)
    return F.relu(x)


def activate_backward(activation: str, grad: Tensor, x: Tensor) -> Tensor:
    """grad * f'(x), elementwise, in one pass over the data."""
    if activation == "gelu_tanh":
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, x)
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, x)
    return torch.ops.aten.threshold_backward(grad, x, 0)
