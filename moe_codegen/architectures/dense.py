"""A dense checkpoint on disk, seen in its family's canonical layout whatever layout it is stored in."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moe_codegen.architectures.architecture import Architecture
from moe_codegen.architectures.layout import Layout, Rule, Shapes
from moe_codegen.architectures.registry import ARCHITECTURES, is_mixture
from moe_codegen.checkpoint import CheckpointReader, read_config
from moe_codegen.errors import CheckpointError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTISED_KEYS = re.compile(r"\.(qweight|qzeros|scales|SCB|absmax|quant_map|weight_scale|weight_scale_inv|g_idx)$")


class DenseCheckpoint(Mapping[str, torch.Tensor]):
    """A read-only mapping from canonical tensor name to tensor, over a dense checkpoint in any known layout.

    Opening it reads headers only and checks them all: the family and layout are known, nothing is quantised,
    and every tensor of the model is there once, in the right shape, with no stranger beside it.

    Args:
        folder, weights: as for `CheckpointReader`.

    Attributes:
        reader: the stored tensors and the raw `config.json`.
        architecture, layout: what the checkpoint is.
        config: its transformers configuration.
        shapes: canonical name -> shape; the mapping's keys.
        duplicates: stored name -> canonical name, for weights a tied checkpoint stores a second time.

    Raises:
        CheckpointError: any of the above does not hold; the message names the tensor or setting.
    """

    def __init__(self, folder: str | Path, weights: bool = True) -> None:
        folder = Path(folder)
        # The settings are judged before the weights are looked at: the most common mistakes show there.
        candidates = _candidates(read_config(folder), folder)
        self.reader = CheckpointReader(folder, weights)
        self.architecture, self.layout = _layout_of(candidates, self.reader)
        self._ignored = re.compile("|".join(self.layout.ignored) or "(?!)")
        self._refuse_quantised()
        self.config, model = self._described()
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(parameter.shape) for name, parameter in model.named_parameters()
        }
        self.rules = bind(self.layout, self.shapes, self.config.num_hidden_layers)
        self.duplicates = self._tied_duplicates(model)
        self._check_names()
        self._check_shapes()

    def __getitem__(self, name: str) -> torch.Tensor:
        """The canonical tensor `name`: a view of the mapped file where the layout allows, else a copy."""
        rule = self.rules[name]
        stored = [self.reader[source] for source in rule.stored]
        return rule.transform.to_canonical(stored, self.config)[rule.canonical.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype the canonical tensor `name` is stored in."""
        return self.reader.headers[self.rules[name].stored[0]].dtype

    def _described(self) -> tuple[PreTrainedConfig, PreTrainedModel]:
        """The configuration, and the empty model that it describes."""
        try:
            config = dense_config(self.architecture, self.layout, self.reader.config)
            return config, empty_model(config)
        except CheckpointError:
            raise
        except Exception as error:  # what transformers and its modules raise has no common base
            raise CheckpointError(
                f"{self.reader.folder / 'config.json'} describes no {self.layout.name} model that transformers can "
                f"build: {' '.join(str(error).split())}. Correct it, or fetch it again"
            ) from error

    def _refuse_quantised(self) -> None:
        method = (self.reader.config.get("quantization_config") or {}).get("quant_method")
        evidence = [
            name
            for name, header in self.reader.headers.items()
            if QUANTISED_KEYS.search(name) or (header.dtype not in FLOATS and not self._ignored.fullmatch(name))
        ]
        if method or evidence:
            raise CheckpointError(
                f"{self.reader.folder} is quantised ({method or _some(evidence)}); experts are made from "
                "full-precision weights. Give the checkpoint it was quantised from, or dequantise and save it first"
            )

    def _tied_duplicates(self, model: PreTrainedModel) -> dict[str, str]:
        tied: dict[str, str] = model._tied_weights_keys if self.config.tie_word_embeddings else {}
        return {name: kept for name, kept in tied.items() if name in self.reader and name not in self.shapes}

    def _check_names(self) -> None:
        needed = {source for rule in self.rules.values() for source in rule.stored}
        missing = sorted(needed - self.reader.keys())
        unknown = [
            name
            for name in sorted(self.reader.keys() - needed - self.duplicates.keys())
            if not self._ignored.fullmatch(name)
        ]
        kind = f"a {self.layout.name} checkpoint of {self.config.num_hidden_layers} layers"
        if missing:
            raise CheckpointError(
                f"{self.reader.folder} lacks {_some(missing)}, which {kind} has; "
                "fetch the checkpoint again, or correct config.json if it belongs to another model"
            )
        if unknown:
            raise CheckpointError(
                f"{self.reader.folder} holds {_some(unknown)}, which {kind} has no place for, and nothing is dropped "
                "silently: merge adapters first, or remove the tensor if you know what it is"
            )

    def _check_shapes(self) -> None:
        for name, rule in self.rules.items():
            stored = [torch.empty(self.reader.headers[source].shape, device="meta") for source in rule.stored]
            try:
                shape = tuple(rule.transform.to_canonical(stored, self.config)[rule.canonical.index(name)].shape)
            except RuntimeError:  # torch cannot cut or join such shapes at all
                shape = None
            if shape != self.shapes[name]:
                found = ", ".join(f"{s} {self.reader.headers[s].shape}" for s in rule.stored)
                raise CheckpointError(
                    f"{self.reader.folder} stores {found}; config.json asks for {name} {self.shapes[name]}. "
                    "The weights and the configuration belong to different models"
                )


def dense_config(architecture: Architecture, layout: Layout, raw: dict[str, Any]) -> PreTrainedConfig:
    """The transformers configuration of a checkpoint whose `config.json` says `raw` in `layout`.

    Raises:
        CheckpointError: it does not say enough.
    """
    try:
        said = layout.to_config(raw)
    except KeyError as error:
        raise CheckpointError(
            f"the config.json of a {layout.name} checkpoint has no {error}; fetch the checkpoint again"
        ) from None
    fields = {key: value for key, value in said.items() if key not in ("model_type", "auto_map")}
    return AutoConfig.for_model(architecture.family, **fields)


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal model of `config` without memory for its weights: names and shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def bind(layout: Layout, names: Shapes, num_layers: int) -> dict[str, Rule]:
    """Canonical name -> the rule that makes it; what no rule of the layout speaks of is stored as it is."""
    rules = {name: Rule((name,), (name,)) for name in names}
    for rule in layout.rules:
        for layer in range(num_layers if any("{layer}" in name for name in rule.stored) else 1):
            concrete = rule.at(layer)
            rules.update(dict.fromkeys(concrete.canonical, concrete))
    return rules


def _candidates(config: dict[str, Any], folder: Path) -> list[tuple[Architecture, Layout]]:
    """The architectures and layouts that the configuration alone allows."""
    model_type = config["model_type"]
    if is_mixture(config):
        raise CheckpointError(f"{folder} is already a mixture of experts ({model_type}); give its dense source")
    candidates = [
        (architecture, layout)
        for architecture in ARCHITECTURES.values()
        for layout in architecture.layouts
        if model_type in layout.model_types
    ]
    if not candidates:
        raise CheckpointError(
            f"{folder} is of model_type {model_type!r}; supported families are {', '.join(ARCHITECTURES)}"
        )
    return candidates


def _layout_of(candidates: list[tuple[Architecture, Layout]], reader: CheckpointReader) -> tuple[Architecture, Layout]:
    shapes = {name: header.shape for name, header in reader.headers.items()}
    for architecture, layout in candidates:
        if layout.matches(reader.config, shapes):
            return architecture, layout
    raise CheckpointError(
        f"{reader.folder} is of model_type {reader.config['model_type']!r} but in no layout known for it "
        f"({', '.join(layout.name for _, layout in candidates)}); a plain GPT-2 is not supported"
    )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
