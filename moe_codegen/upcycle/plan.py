"""The whole conversion before any of it happens: each target tensor, what it is made from, and where it goes."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.architectures.dense import empty_model
from moe_codegen.checkpoint import Shard, TensorToWrite, into_shards
from moe_codegen.errors import ConfigError
from moe_codegen.modeling import MoEConfig
from moe_codegen.upcycle.options import UpcycleOptions, parse_layers, parse_size
from moe_codegen.upcycle.sources import Sources
from moe_codegen.upcycle.weights import ExpertCutter, Kind, Part, blend, shares

SPARSE = re.compile(r"\.(\d+)\.mlp\.(gate|experts|shared_expert)\.(.+)$")


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the mixture.

    Attributes:
        tensor: what to write.
        sources: the canonical names of what it is made from, each as `checkpoint:name`.
        how: in a few words, what happens to them.
    """

    tensor: TensorToWrite
    sources: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Plan:
    """A conversion: the mixture's configuration, its tensors, and the files they go to.

    The router's rows are not known yet where they come from text: `routers` is filled, for each sparse layer with
    an (E, D) tensor, before the plan is carried out.
    """

    config: MoEConfig
    tensors: list[PlannedTensor]
    shards: list[Shard]
    routers: dict[int, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def largest_piece_bytes(self) -> int:
        """Bytes of the largest tensor, where one of stacked experts counts as the dense FFN's it was cut from."""
        copies = self.config.num_experts // self.config.expert_granularity
        return max(
            planned.tensor.nbytes // (copies if ".mlp.experts." in planned.tensor.name else 1)
            for planned in self.tensors
        )

    @property
    def num_parameters(self) -> int:
        """Weights of the mixture."""
        return sum(torch.Size(planned.tensor.shape).numel() for planned in self.tensors)

    def records(self) -> Iterator[dict[str, Any]]:
        """One record for each tensor, for `--json` and `upcycle.json`."""
        file_of = {tensor.name: shard.file for shard in self.shards for tensor in shard.tensors}
        for planned in self.tensors:
            tensor = planned.tensor
            yield {
                "name": tensor.name,
                "from": list(planned.sources),
                "how": planned.how,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": tensor.nbytes,
                "file": file_of[tensor.name],
            }


def make_plan(sources: Sources, options: UpcycleOptions) -> Plan:
    """Plan the conversion of `sources`; reads headers only.

    Raises:
        ConfigError: options that this model or these sources do not allow.
    """
    return _Planner(sources, options).plan()


class _Planner:
    def __init__(self, sources: Sources, options: UpcycleOptions) -> None:
        self.sources = sources
        self.options = options
        self.base = sources.base
        self.dtype = options.torch_dtype
        self.config = _moe_config(sources, options)
        self.cutter = ExpertCutter(options.granularity, options.drop_ratio, options.noise_std, options.seed)
        # The source of each FFN that becomes an expert, or G of them.
        copies = options.num_experts // options.granularity
        self.experts = list(sources.experts.items()) or [("base", self.base)] * copies
        self.shared = _shared_weights(sources, options)
        self.routers: dict[int, torch.Tensor] = {}

    def plan(self) -> Plan:
        model = empty_model(self.config)
        tensors = [self._tensor(name, tuple(p.shape)) for name, p in model.named_parameters()]
        shards = into_shards((planned.tensor for planned in tensors), parse_size(self.options.max_shard_size))
        return Plan(self.config, tensors, shards, self.routers)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> PlannedTensor:
        sparse = SPARSE.search(name)
        if sparse is None:
            return self._outside(name, name, shape)
        layer, module, parameter = int(sparse[1]), sparse[2], sparse[3]
        if module == "gate":
            return self._router(name, shape, layer, parameter)
        if module == "shared_expert":
            return self._outside(name, f"{self.base.architecture.layer(layer)}.mlp.{parameter}", shape)
        return self._experts(name, shape, layer, parameter)

    def _outside(self, name: str, dense_name: str, shape: tuple[int, ...]) -> PlannedTensor:
        """A tensor that is no expert's: the base's, or a blend over the checkpoints."""
        dtype = self.dtype or self.base.dtype(dense_name)
        sources = tuple(f"{checkpoint}:{dense_name}" for checkpoint in self.shared)

        def pieces() -> Iterable[torch.Tensor]:
            tensors = [self.sources.checkpoints[checkpoint][dense_name] for checkpoint in self.shared]
            return tensors if len(tensors) == 1 else blend(tensors, list(self.shared.values()))

        how = "copy" if len(self.shared) == 1 else "blend " + ", ".join(f"{w:.3g}" for w in self.shared.values())
        return PlannedTensor(TensorToWrite(name, shape, dtype, pieces), sources, how)

    def _router(self, name: str, shape: tuple[int, ...], layer: int, parameter: str) -> PlannedTensor:
        dtype = self.dtype or self.base.dtype(
            f"{self.base.architecture.layer(layer)}.{self.base.architecture.norm}.weight"
        )
        if parameter == "noise_weight":
            zeros = TensorToWrite(name, shape, dtype, lambda: [torch.zeros(shape)])
            return PlannedTensor(zeros, (), "zeros")
        tensor = TensorToWrite(name, shape, dtype, lambda: [self.routers[layer]])
        return PlannedTensor(tensor, (), f"router {self.options.router}")

    def _experts(self, name: str, shape: tuple[int, ...], layer: int, parameter: str) -> PlannedTensor:
        part: Part = "down" if parameter.startswith("down") else "inner"
        kind: Kind = "bias" if parameter.endswith("_bias") else "weight"
        ffn = self.base.architecture.ffn
        inner = [
            f"{self.base.architecture.layer(layer)}.mlp.{linear}.{kind}"
            for linear in (ffn.inner if part == "inner" else (ffn.down,))
        ]
        dtype = self.dtype or self.base.dtype(inner[0])
        names = dict.fromkeys(checkpoint for checkpoint, _ in self.experts)
        sources = tuple(f"{checkpoint}:{tensor}" for checkpoint in names for tensor in inner)
        pieces = partial(self._expert_pieces, layer, part, kind, dtype)
        return PlannedTensor(TensorToWrite(name, shape, dtype, pieces), sources, self._how_experts())

    def _expert_pieces(self, layer: int, part: Part, kind: Kind, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        pieces: list[torch.Tensor] = []
        for expert, (_, dense) in enumerate(self.experts):
            # Equal experts are cut once and written many times.
            if expert == 0 or self.sources.experts or self.cutter.diversifies:
                pieces = self.cutter.cut(dense, layer, expert, part, kind, dtype)
            yield from pieces

    def _how_experts(self) -> str:
        options = self.options
        how = f"{len(self.experts)} checkpoints" if self.sources.experts else f"{len(self.experts)} copies"
        if options.drop_ratio:
            how += f", {options.drop_ratio:.0%} of units re-initialised"
        if options.noise_std:
            how += f", noise {options.noise_std:g}"
        return how + (f", each split in {options.granularity}" if options.granularity > 1 else "")


def _moe_config(sources: Sources, options: UpcycleOptions) -> MoEConfig:
    base = sources.base
    width = base.architecture.ffn.width_of(base.config)
    if options.granularity > 1 and width % options.granularity:
        raise ConfigError(f"granularity={options.granularity} does not divide the FFN's {width} hidden units")
    num_layers = base.config.num_hidden_layers
    layers = parse_layers(options.layers, num_layers)
    config = MoEConfig.from_dense(
        base.config,
        num_experts=options.num_experts,
        num_experts_per_tok=options.top_k,
        moe_intermediate_size=width // options.granularity,
        moe_layers=None if len(layers) == num_layers else layers,
        norm_topk_prob=options.renormalise,
        shared_expert=options.shared_expert,
        expert_granularity=options.granularity,
        expert_names=list(sources.experts) or None,
        source={
            "layout": base.layout.name,
            "config": base.reader.config,
            "duplicates": base.duplicates,
            "dtype": _main_dtype(base),
        },
    )
    config.dtype = options.dtype or _main_dtype(base)
    return config


def _main_dtype(dense: DenseCheckpoint) -> str:
    """The dtype that most of the weights are stored in."""
    weights: Counter[torch.dtype] = Counter()
    for name, shape in dense.shapes.items():
        weights[dense.dtype(name)] += torch.Size(shape).numel()
    return str(weights.most_common(1)[0][0]).removeprefix("torch.")


def _shared_weights(sources: Sources, options: UpcycleOptions) -> dict[str, float]:
    """Checkpoint name -> its weight in the tensors outside the experts; the weights sum to 1."""
    if options.shared == "base":
        return {"base": 1.0}
    names = list(sources.experts)
    if not names:
        raise ConfigError(f"shared={options.shared!r} blends the experts' checkpoints, and none are given")
    weights = dict.fromkeys(names, 1.0) if options.shared == "average" else cast(Mapping[str, float], options.shared)
    normalised = shares(weights)
    if normalised is None or not weights.keys() <= sources.checkpoints.keys():
        raise ConfigError(
            f"shared={dict(weights)} must give non-negative weights to {', '.join(sources.checkpoints)}, not all zero"
        )
    return normalised
