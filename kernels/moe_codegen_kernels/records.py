"""What the ops hand to their kernels as one thing: the experts of a layer, and where each routed row goes.

torch.library knows tensors and numbers only, so an op's signature is flat; these are made of it on the first line.

    D model, F expert hidden, G = 2F when gated else F, E experts, K top-k, R = T*K routed rows.
"""

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from moe_codegen_kernels.quantised_weights import Quantised

Matrices = Tensor | Quantised
MatrixT = TypeVar("MatrixT", bound=Matrices, covariant=True)


class ExpertWeights(NamedTuple, Generic[MatrixT]):
    """E feed-forward networks, `down(f(up(x)))`, or `down(f(gate(x)) * up(x))` when gated.

    up: (E, G, D) with the gate's F rows first, up_bias: (E, G), down: (E, D, F), down_bias: (E, D); on the CPU the
    matrices may be packed (`packed.py`), or in 8 or 4 bits: `ExpertWeights[Matrices]`.
    """

    up: MatrixT
    up_bias: Tensor | None
    down: MatrixT
    down_bias: Tensor | None
    activation: str
    gated: bool

    def of(self, experts: slice | Tensor) -> "ExpertWeights[Matrices]":
        """Some of them."""
        up_bias, down_bias = (None if bias is None else bias[experts] for bias in (self.up_bias, self.down_bias))
        return ExpertWeights(self.up[experts], up_bias, self.down[experts], down_bias, self.activation, self.gated)


class RoutingPlan(NamedTuple):
    """The rows sorted by expert, those of one expert by slot.

    order_R    int32  sorted row -> slot (token*K + choice); rows of one expert are adjacent, slots ascending
    inverse_R  int32  slot -> sorted row
    offsets_E  int32  E + 1 bounds: expert e owns rows offsets_E[e] .. offsets_E[e+1];
                      rows from offsets_E[E] on belong to no expert (ids of E or more: expert-parallel sentinels)
    """

    order_R: Tensor
    inverse_R: Tensor
    offsets_E: Tensor
