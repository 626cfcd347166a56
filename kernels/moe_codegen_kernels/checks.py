"""What every op on a layer asks of its arguments before work starts."""

from torch import Tensor

from moe_codegen_kernels.activations import ACTIVATIONS
from moe_codegen_kernels.records import ExpertWeights, Matrices

DEVICES = ("cpu", "cuda", "meta")  # "cuda" is AMD's GPUs, too


def check_layer(hidden_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, experts: ExpertWeights[Matrices]) -> None:
    """Say which argument does not fit the others; of quantised matrices the shapes are those of the weights."""
    up, up_bias, down, down_bias, activation, gated = experts
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not known; choose one of {', '.join(ACTIVATIONS)}")
    if hidden_TD.device.type not in DEVICES:
        raise ValueError(f"there is no kernel for {hidden_TD.device}; use one of {', '.join(DEVICES)}")
    if hidden_TD.dim() != 2 or len(up.shape) != 3 or len(down.shape) != 3:
        raise ValueError(
            f"hidden_TD {tuple(hidden_TD.shape)}, up {tuple(up.shape)}, down {tuple(down.shape)}; "
            "expected (tokens, model), (experts, hidden, model) and (experts, model, hidden)"
        )
    tokens, model = hidden_TD.shape
    count, _, hidden = down.shape
    expected = {
        "up": (up, (count, 2 * hidden if gated else hidden, model)),
        "up_bias": (up_bias, (count, up.shape[1])),
        "down": (down, (count, model, hidden)),
        "down_bias": (down_bias, (count, model)),
        "weights_TK": (weights_TK, tuple(expert_ids_TK.shape)),
        "expert_ids_TK": (expert_ids_TK, (tokens, expert_ids_TK.shape[-1])),
    }
    for name, (given, shape) in expected.items():
        if given is None:
            continue
        if tuple(given.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; expected {shape} (gated={gated})")
        device = (given if isinstance(given, Tensor) else given.stored).device
        if device != hidden_TD.device:
            raise ValueError(f"{name} is on {device} and hidden_TD on {hidden_TD.device}; move one")
