"""`extract`: the way back, from a mixture to one dense checkpoint in the layout its source had."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from moe_codegen.architectures import Layout
from moe_codegen.architectures.dense import bind, dense_config, empty_model
from moe_codegen.architectures.layout import Rule
from moe_codegen.checkpoint import (
    TensorToWrite,
    into_shards,
    resolve_source,
    resolve_target,
)
from moe_codegen.errors import ConfigError
from moe_codegen.modeling import MoEConfig
from moe_codegen.reporting import Progress, no_progress
from moe_codegen.upcycle.card import LOAD_DENSE, model_card
from moe_codegen.upcycle.mixture import open_mixture
from moe_codegen.upcycle.options import parse_size
from moe_codegen.upcycle.output import write_from_mixture
from moe_codegen.upcycle.weights import blend, shares

# What config.json called parts of `rope_parameters` before transformers 5, and still reads first.
OLD_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


@dataclass(frozen=True)
class ExtractReport:
    """What was written: the folder, its layout, and the weight of each expert in it."""

    out: Path
    layout: str
    weights: dict[str, float]
    nbytes: int
    files: dict[str, dict[str, Any]]


def extract(
    source: str | Path,
    out: str | Path,
    *,
    expert: str | int | None = None,
    weights: Mapping[str, float] | None = None,
    max_shard_size: str = "5GB",
    progress: Progress = no_progress,
) -> ExtractReport:
    """Write one expert of a mixture, or a weighted merge of its experts, as a dense checkpoint.

    The result has the layout of the mixture's dense source, and its `config.json` but for what was set since. What was
    upcycled from copies comes back bit for bit (but for mask buffers, which hold no weights). Everything outside the
    experts is the mixture's. A shared expert counts with its share of the output.

    Args:
        source: the mixture, a folder or hub id.
        out: folder to create.
        expert: its name or index. Counted before splitting: with granularity G an expert is G pieces.
        weights: name or index of each expert -> its weight in the merge; they are scaled to sum to 1.
            Neither `expert` nor `weights`: the plain mean of all.
        max_shard_size: of one weight file.
        progress: as for `upcycle`.

    Raises:
        ConfigError: no such expert, weights that cannot be scaled to sum to 1, or a setting of the mixture that the
            source's layout has no word for.
        CheckpointError: the source is no readable mixture.
        OutputError, ResumeError: as for `upcycle`.
    """
    out = resolve_target(out)
    folder = resolve_source(source)
    mixture = _Mixture(folder, expert, weights)
    tensors = [tensor for rule in mixture.rules for tensor in mixture.stored_tensors(rule)]
    shards = into_shards(tensors, parse_size(max_shard_size))
    merged = ", ".join(f"{name} {weight:.3g}" for name, weight in mixture.weights.items())
    files = write_from_mixture(
        source,
        mixture.reader,
        out,
        shards,
        # A list, for what is summed first is part of the result.
        {"weights": list(mixture.weights.items()), "max_shard_size": max_shard_size},
        card=lambda record: model_card(
            record,
            folder,
            title="dense",
            what=f"A dense checkpoint in the layout `{mixture.layout.name}`, taken out of the mixture `{source}`",
            facts=[f"Of its experts: {merged}."],
            code=LOAD_DENSE,
            tags="code",
        ),
        write_config=lambda path: (path / "config.json").write_text(json.dumps(mixture.raw_config, indent=2) + "\n"),
        step="writing the dense checkpoint",
        progress=progress,
    )
    nbytes = sum(shard.nbytes for shard in shards)
    return ExtractReport(out, mixture.layout.name, mixture.weights, nbytes, files)


class _Mixture:
    """A mixture on disk, seen as the dense checkpoint that is to be taken out of it."""

    def __init__(self, folder: Path, expert: str | int | None, weights: Mapping[str, float] | None) -> None:
        self.config, self.reader = open_mixture(folder)
        self.architecture = self.config.architecture
        self.layout, self.raw_config, tied = _source_of(self.config)
        self.dense_config = dense_config(self.architecture, self.layout, self.raw_config)
        self.shapes = {name: tuple(p.shape) for name, p in empty_model(self.dense_config).named_parameters()}
        rules = bind(self.layout, self.shapes, self.dense_config.num_hidden_layers)
        # Tied weights that the source stored a second time are written a second time.
        duplicates = [Rule((name,), (kept,)) for name, kept in tied.items()]
        self.rules = [*dict.fromkeys(rules.values()), *duplicates]
        self.weights = _expert_weights(self.config, expert, weights)

    def stored_tensors(self, rule: Rule) -> list[TensorToWrite]:
        """The tensors of the dense checkpoint's own layout that `rule` speaks of."""
        empty = [torch.empty(self.shapes[name], device="meta") for name in rule.canonical]
        dtype = self.reader.headers[self._made_from(rule.canonical[0])].dtype

        def pieces(position: int) -> Iterable[torch.Tensor]:
            canonical = [self._dense_tensor(name, dtype) for name in rule.canonical]
            return [rule.transform.to_stored(canonical, self.dense_config)[position]]

        return [
            TensorToWrite(name, tuple(tensor.shape), dtype, partial(pieces, position))
            for position, (name, tensor) in enumerate(
                zip(rule.stored, rule.transform.to_stored(empty, self.dense_config), strict=True)
            )
        ]

    def _dense_tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The dense tensor `name` in the family's canonical layout, blended from the chosen experts."""
        layer = self._sparse_layer(name)
        if layer is None:
            return self.reader[name]
        names = expert_names(self.config)
        parts = [self._expert_tensor(name, layer, names.index(expert)) for expert in self.weights]
        weights = list(self.weights.values())
        if self.config.shared_expert:
            share = self.config.shared_expert_weight
            parts = [self.reader[name.replace(".mlp.", ".mlp.shared_expert.")], *parts]
            weights = [share, *(weight * (1 - share) for weight in weights)]
        return torch.cat([block.to(dtype) for block in blend(parts, weights)])

    def _expert_tensor(self, name: str, layer: int, expert: int) -> torch.Tensor:
        linear, kind = name.rsplit(".", 2)[-2:]
        ffn, pieces = self.architecture.ffn, self.config.expert_granularity
        cuts = self.reader[self._made_from(name)][expert * pieces : (expert + 1) * pieces]
        if linear != ffn.down:
            # The pieces of a matrix, each with its own rows of it, come together again.
            inner = cuts.unflatten(1, (ffn.inner_matrices, -1)).transpose(0, 1).flatten(0, 2)
            return inner.chunk(len(ffn.inner))[ffn.inner.index(linear)]
        if pieces == 1 or kind == "bias":  # a cut's bias is the whole bias
            return cuts[0]
        return torch.cat(list(cuts / pieces), dim=1)

    def _sparse_layer(self, name: str) -> int | None:
        match = re.match(rf"{re.escape(self.architecture.layers)}\.(\d+)\.mlp\.", name)
        return int(match[1]) if match and int(match[1]) in self.config.sparse_layers else None

    def _made_from(self, name: str) -> str:
        """The mixture's own tensor that holds the dense tensor `name`."""
        layer = self._sparse_layer(name)
        if layer is None:
            return name
        linear, kind = name.rsplit(".", 2)[-2:]
        ffn = self.architecture.ffn
        stacked = "down_proj" if linear == ffn.down else "gate_up_proj" if ffn.gated else "up_proj"
        return f"{self.architecture.layer(layer)}.mlp.experts.{stacked}{'_bias' if kind == 'bias' else ''}"


def _source_of(config: MoEConfig) -> tuple[Layout, dict[str, Any], dict[str, str]]:
    """Layout, `config.json` and tied duplicates of the dense checkpoint: its source's, or else the canonical ones."""
    if config.source is None:
        architecture = config.architecture
        raw = {
            **_family_fields(config),
            "model_type": architecture.family,
            "architectures": [f"{architecture.class_prefix}ForCausalLM"],
            "dtype": _dtype_name(config),
        }
        return architecture.layouts[0], raw, {}
    source = config.source
    layout = {layout.name: layout for layout in config.architecture.layouts}[source["layout"]]
    raw = _with_what_changed(config, layout, source["config"])
    if _dtype_name(config) != source["dtype"]:
        raw["dtype" if "dtype" in raw else "torch_dtype"] = _dtype_name(config)
    return layout, raw, source["duplicates"] if config.tie_word_embeddings else {}


def _with_what_changed(config: MoEConfig, layout: Layout, raw: dict[str, Any]) -> dict[str, Any]:
    """`raw`, the source's `config.json`, with what the mixture was given since: new tokens, longer contexts.

    Raises:
        ConfigError: the layout's `config.json` cannot say it.
    """
    wanted, before = _family_fields(config), _family_fields(dense_config(config.architecture, layout, raw))
    changed = {key: value for key, value in wanted.items() if value != before[key]}
    if "rope_parameters" in changed:  # what older files say instead would be believed first
        raw = {key: value for key, value in raw.items() if key not in OLD_ROPE_FIELDS}
    raw = raw | changed
    written = _family_fields(dense_config(config.architecture, layout, raw))
    for key in changed:
        if written[key] != wanted[key]:
            raise ConfigError(
                f"the mixture's {key} is {wanted[key]!r}, its source's was {before[key]!r}, and the "
                f"config.json of a {layout.name} checkpoint cannot say so; set it back in the mixture's config.json"
            )
    return raw


def _family_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a dense configuration that only its family has, of `config`: that or a mixture's."""
    family = config.architecture.family if isinstance(config, MoEConfig) else config.model_type
    every_model = PreTrainedConfig().to_dict()
    fields = config.to_dict()
    return {key: fields[key] for key in AutoConfig.for_model(family).to_dict() if key not in every_model}


def _dtype_name(config: MoEConfig) -> str:
    return str(config.dtype).removeprefix("torch.")


def expert_names(config: MoEConfig) -> list[str]:
    """The names of a mixture's experts before splitting: their own, or else their numbers."""
    return config.expert_names or [str(index) for index in range(config.num_experts // config.expert_granularity)]


def _expert_weights(
    config: MoEConfig, expert: str | int | None, weights: Mapping[str, float] | None
) -> dict[str, float]:
    """Expert name -> weight; they sum to 1."""
    if expert is not None and weights is not None:
        raise ConfigError("expert and weights exclude each other: one expert, or a merge")
    names = expert_names(config)
    asked = {expert: 1.0} if expert is not None else weights or dict.fromkeys(names, 1.0)
    chosen: dict[str, float] = {}
    for key, weight in ((str(key), weight) for key, weight in asked.items()):
        # An index is understood where experts have names, too.
        name = names[int(key)] if key not in names and key.isdecimal() and int(key) < len(names) else key
        if name not in names:
            raise ConfigError(f"no expert is called {name!r}; there are {', '.join(names)}")
        if name in chosen:
            raise ConfigError(f"weights gives expert {name!r} twice; give it once, by its name or its number")
        chosen[name] = weight
    normalised = shares(chosen)
    if normalised is None:
        raise ConfigError(f"weights={chosen} must be numbers that are not negative, and not all zero")
    return normalised
