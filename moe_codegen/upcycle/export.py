"""`export`: a mixture as one that transformers has itself, for engines that know only those."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moe_codegen.architectures.stock import STOCK_MIXTURES, StockMixture
from moe_codegen.checkpoint import (
    CheckpointReader,
    TensorToWrite,
    into_shards,
    resolve_source,
    resolve_target,
)
from moe_codegen.errors import ConfigError
from moe_codegen.modeling import MoEConfig
from moe_codegen.modeling.parameters import parameter_shapes
from moe_codegen.reporting import Progress, no_progress
from moe_codegen.upcycle.card import LOAD_STOCK, model_card
from moe_codegen.upcycle.mixture import open_mixture
from moe_codegen.upcycle.options import parse_size
from moe_codegen.upcycle.output import write_from_mixture

SPARSE = re.compile(r"^(.+\.\d+)\.mlp\.(gate|experts|shared_expert)\.(.+)$")
ABSENT_WIDTH = 256  # of a shared expert that adds nothing; what engines cut and quantise by divides it


@dataclass(frozen=True)
class ExportReport:
    """What was written: the folder, the model type it has now, its bytes, and file -> {"bytes", "sha256"}."""

    out: Path
    model_type: str
    nbytes: int
    files: dict[str, dict[str, Any]]


def export(
    source: str | Path, out: str | Path, *, max_shard_size: str = "5GB", progress: Progress = no_progress
) -> ExportReport:
    """Write a mixture of the Llama or Mistral family as Mixtral, of Qwen2 as Qwen2-MoE, of Qwen3 as Qwen3-MoE.

    It computes the same, but that those models route in the weights' dtype where ours route in float32: in bfloat16 a
    token whose experts are nearly tied may take another. A killed run goes on when the same call is made again.

    Args:
        source: the mixture, a folder or hub id.
        out: folder to create.
        max_shard_size: of one weight file.
        progress: as for `upcycle`.

    Raises:
        ConfigError: the mixture has what no such model has, such as another family's layers.
        CheckpointError: the source is no readable mixture, or its experts are quantised.
        OutputError, ResumeError: as for `upcycle`.
    """
    out, folder = resolve_target(out), resolve_source(source)
    config, reader = open_mixture(folder)
    stock = _stock_mixture(config)
    shards = into_shards(_tensors(config, stock, reader), parse_size(max_shard_size))
    fields = _config_fields(config, stock)
    files = write_from_mixture(
        source,
        reader,
        out,
        shards,
        {"max_shard_size": max_shard_size},
        card=lambda record: model_card(
            record,
            folder,
            title=f"as {stock.model_type}",
            what=f"The mixture `{source}` in the layers of `{stock.class_name}`, written",
            facts=[f"{config.num_experts} experts in each sparse layer, {config.num_experts_per_tok} take each token."],
            code=LOAD_STOCK,
            tags="mixture-of-experts, code, upcycled",
        ),
        write_config=lambda path: (path / "config.json").write_text(json.dumps(fields, indent=2) + "\n"),
        step=f"writing {stock.model_type}",
        progress=progress,
    )
    return ExportReport(out, stock.model_type, sum(shard.nbytes for shard in shards), files)


def _stock_mixture(config: MoEConfig) -> StockMixture:
    """The model that can stand for a mixture of this configuration; ConfigError says why there is none."""
    family = config.architecture.family
    stock = STOCK_MIXTURES.get(family)
    if stock is None:
        raise ConfigError(
            f"serving engines have mixtures with the layers of {', '.join(STOCK_MIXTURES)}, and none with those of "
            f"{family}; serve this one through transformers, after `import moe_codegen`"
        )
    cannot_be_told = {"mlp_only_layers", "norm_topk_prob", "attention_bias"} - stock.fields
    reasons = {
        "some layers are dense (moe_layers); convert all of them": (
            "mlp_only_layers" in cannot_be_told and config.moe_layers is not None
        ),
        "the experts' weights are not renormalised (norm_topk_prob)": (
            "norm_topk_prob" in cannot_be_told and not config.norm_topk_prob
        ),
        "attention has biases (attention_bias)": (
            "attention_bias" in cannot_be_told and getattr(config, "attention_bias", False)
        ),
        "a shared expert takes every token (shared_expert)": config.shared_expert and not stock.has_shared_expert,
        "the experts have biases (mlp_bias)": config.architecture.ffn.has_bias(config),
        "some layers attend to a sliding window": "sliding_attention" in (getattr(config, "layer_types", None) or ()),
        "the router normalises its logits (router_logit_scale)": config.router_logit_scale > 0,
        f"the router is told the language (language_routing={config.language_routing!r})": (
            config.language_routing != "none"
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{stock.class_name} cannot compute this mixture: {reason}")
    return stock


def _tensors(config: MoEConfig, stock: StockMixture, reader: CheckpointReader) -> Iterator[TensorToWrite]:
    """Every tensor of the checkpoint of `stock`, from those of ours."""
    for name in parameter_shapes(config):
        sparse = SPARSE.match(name)
        if sparse is None:
            yield _tensor(name, reader, name)
            continue
        layer, module, parameter = sparse.groups()
        block = f"{layer}.{stock.block}"
        if module == "experts":
            yield from _expert_tensors(config, stock, reader, name, f"{block}.experts")
        elif module == "shared_expert":
            is_down = parameter.startswith("down_proj")
            scale = 2 * config.shared_expert_weight if is_down else 1  # the gate's sigmoid is 1/2
            yield _tensor(f"{block}.{module}.{parameter}", reader, name, scale=scale)
        elif parameter == "weight":  # the router's; its noise is training's alone
            yield _tensor(f"{block}.gate.weight", reader, name)
            if stock.has_shared_expert:
                yield from _shared_expert_tensors(config, reader.headers[name].dtype, block)


def _expert_tensors(
    config: MoEConfig, stock: StockMixture, reader: CheckpointReader, name: str, experts: str
) -> Iterator[TensorToWrite]:
    """Each expert's matrices apart, of a stack of them; where there is a shared expert, its share is taken off."""
    ffn = config.architecture.ffn
    is_down = name.endswith(ffn.down)
    linears = (ffn.down,) if is_down else ffn.inner
    num_rows = reader.headers[name].shape[1] // len(linears)
    scale = 1 - config.shared_expert_weight if config.shared_expert and is_down else 1
    for expert in range(config.num_experts):
        for place, linear in enumerate(linears):
            rows = slice(place * num_rows, (place + 1) * num_rows)
            target = f"{experts}.{expert}.{stock.linears[linear]}.weight"
            yield _tensor(target, reader, name, (expert, rows), scale)


def _shared_expert_tensors(config: MoEConfig, dtype: torch.dtype, block: str) -> Iterator[TensorToWrite]:
    """The shared expert's gate, which is 1/2 for every token; and a shared expert of zeros where there is none."""
    shapes = {"shared_expert_gate": (1, config.hidden_size)}
    if not config.shared_expert:
        wide, narrow = (ABSENT_WIDTH, config.hidden_size), (config.hidden_size, ABSENT_WIDTH)
        for linear, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", narrow)):
            shapes[f"shared_expert.{linear}"] = shape
    for module, shape in shapes.items():
        yield TensorToWrite(f"{block}.{module}.weight", shape, dtype, partial(_zeros, shape))


def _zeros(shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(shape)]


def _tensor(name: str, reader: CheckpointReader, source: str, part: Any = ..., scale: float = 1) -> TensorToWrite:
    """`part` of our tensor `source` under another name."""
    header = reader.headers[source]
    shape = tuple(torch.empty(header.shape, device="meta")[part].shape)
    return TensorToWrite(name, shape, header.dtype, partial(_read, reader, source, part, scale))


def _read(reader: CheckpointReader, source: str, part: Any, scale: float) -> list[torch.Tensor]:
    tensor = reader[source][part]
    return [tensor if scale == 1 else tensor * scale]


def _config_fields(config: MoEConfig, stock: StockMixture) -> dict[str, Any]:
    """`config.json` of the exported model, in the words that its published checkpoints and older engines use."""
    theirs = (stock.fields | {"head_dim"}) - {"layer_types", "rope_parameters"}
    rope = dict(config.rope_parameters)
    fields = {
        "architectures": [stock.class_name],
        "model_type": stock.model_type,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        **{key: value for key, value in config.to_dict().items() if key in theirs},
        "rope_theta": rope.pop("rope_theta"),
        stock.experts_field: config.num_experts,
        stock.width_field: config.moe_intermediate_size,
    }
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = rope
    if "mlp_only_layers" in stock.fields:
        dense = sorted({*range(config.num_hidden_layers)} - {*config.sparse_layers})
        fields |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    if stock.has_shared_expert:
        width = config.architecture.ffn.width_of(config) if config.shared_expert else ABSENT_WIDTH
        fields |= {"shared_expert_intermediate_size": width}
    return fields
