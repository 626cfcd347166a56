"""Where a mixture's tensors come from: copies, blends, and experts cut from dense FFNs and made to differ.

Dimensions: D model, F dense FFN's hidden, E experts, G granularity.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from moe_codegen.architectures import DenseCheckpoint

Part = Literal["inner", "down"]
Kind = Literal["weight", "bias"]
# Elements that are widened to fp32 at once.
BLOCK = 2**20


def generator_for(seed: int, *key: object) -> torch.Generator:
    """A generator whose numbers depend on `seed` and `key` alone, not on what was drawn before it."""
    digest = hashlib.sha256("/".join(map(str, (seed, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def shares(weights: Mapping[str, float]) -> dict[str, float] | None:
    """`weights` scaled to sum to 1, those of zero left out; None if they cannot be."""
    total = sum(weights.values())
    if not (all(0 <= weight < math.inf for weight in weights.values()) and 0 < total < math.inf):
        return None
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def blend(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> Iterator[torch.Tensor]:
    """`sum_i w_i x_i` for weights that sum to 1, in fp32, a block of rows at a time.

    Computed as `x_0 + sum_i w_i (x_i - x_0)`, so that equal tensors blend to themselves bit for bit.
    """
    for blocks in zip(*map(_row_blocks, tensors), strict=True):
        wide = torch.promote_types(blocks[0].dtype, torch.float32)
        first = blocks[0].to(wide)
        total = first.clone()
        for block, weight in zip(blocks[1:], weights[1:], strict=True):
            total += weight * (block.to(wide) - first)
        yield total


@dataclass(frozen=True)
class ExpertCutter:
    """Makes one expert's tensors from a dense FFN.

    An FFN is cut into G pieces along F. The second matrix of a piece is scaled by G: with the router's rows equal
    for the pieces of one FFN, all G are chosen together, each with a Gth of its weight. The second bias is not
    scaled, for it is added G times with a Gth of the weight.

    `drop_ratio` re-initialises that share of the hidden units (arXiv 2502.19261): the same units in the rows of the
    first matrices, their biases and the columns of the second, drawn from a normal distribution with the mean and
    deviation of what they replace. `noise_std` adds Gaussian noise of that many times each tensor's root mean square.
    """

    granularity: int
    drop_ratio: float
    noise_std: float
    seed: int

    @property
    def diversifies(self) -> bool:
        """Whether experts of one source differ."""
        return self.drop_ratio > 0 or self.noise_std > 0

    def cut(
        self, dense: DenseCheckpoint, layer: int, expert: int, part: Part, kind: Kind, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The G pieces, in `dtype`, of one tensor of `expert`, the number of the source FFN in its layer."""
        key = (layer, expert, part, kind)
        tensor = _ffn_tensor(dense, layer, part, kind)
        if self.drop_ratio > 0 and (part, kind) != ("down", "bias"):
            tensor = self._reinitialised(dense, tensor, key)
        if self.noise_std > 0:
            tensor = self._with_noise(tensor, key, dtype)
        return [piece.to(dtype).contiguous() for piece in self._pieces(dense, tensor, part, kind)]

    def _pieces(self, dense: DenseCheckpoint, tensor: torch.Tensor, part: Part, kind: Kind) -> list[torch.Tensor]:
        pieces = self.granularity
        if pieces == 1:
            return [tensor]
        if part == "down":
            return [tensor] * pieces if kind == "bias" else [p * pieces for p in tensor.chunk(pieces, dim=1)]
        # A gated FFN's first matrices stand one above the other: each is cut, and the cuts put together.
        halves = [half.chunk(pieces) for half in tensor.chunk(dense.architecture.ffn.inner_matrices)]
        return [torch.cat(cuts) for cuts in zip(*halves, strict=True)]

    def _reinitialised(
        self, dense: DenseCheckpoint, tensor: torch.Tensor, key: tuple[int, int, Part, Kind]
    ) -> torch.Tensor:
        layer, expert, part, _ = key
        tensor = tensor.clone()
        # A gated FFN's first matrices stand one above the other, each with its own mean and deviation.
        matrices = tensor.chunk(dense.architecture.ffn.inner_matrices) if part == "inner" else (tensor,)
        dim = 1 if part == "down" else 0
        units = matrices[0].shape[dim]
        order = torch.randperm(units, generator=generator_for(self.seed, "drop", layer, expert))
        dropped = order[: max(1, round(self.drop_ratio * units))]
        generator = generator_for(self.seed, *key)
        for matrix in matrices:
            values = matrix.index_select(dim, dropped).float()
            values.normal_(values.mean().item(), values.std(correction=0).item(), generator=generator)
            matrix.index_copy_(dim, dropped, values.to(matrix.dtype))
        return tensor

    def _with_noise(self, tensor: torch.Tensor, key: tuple[int, int, Part, Kind], dtype: torch.dtype) -> torch.Tensor:
        generator = generator_for(self.seed, "noise", *key)
        root_mean_square = torch.linalg.vector_norm(tensor, dtype=torch.float32) / tensor.numel() ** 0.5
        noisy = torch.empty(tensor.shape, dtype=dtype)
        for source, target in zip(_row_blocks(tensor), _row_blocks(noisy), strict=True):
            noise = torch.randn(source.shape, generator=generator)
            target.copy_(noise.mul_(self.noise_std * root_mean_square).add_(source))
        return noisy


def _row_blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of some rows each, small enough to be widened."""
    return tensor.split(max(1, BLOCK * len(tensor) // tensor.numel()))


def _ffn_tensor(dense: DenseCheckpoint, layer: int, part: Part, kind: Kind) -> torch.Tensor:
    """A dense FFN's first matrices (the gate's rows first) or second one, or their biases."""
    ffn = dense.architecture.ffn
    names = ffn.inner if part == "inner" else (ffn.down,)
    tensors = [dense[f"{dense.architecture.layer(layer)}.mlp.{name}.{kind}"] for name in names]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
