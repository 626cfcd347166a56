"""`quantise`: a mixture on disk with its experts in 8 or 4 bits, one tensor in memory at a time."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moe_codegen.checkpoint import (
    CheckpointReader,
    TensorToWrite,
    into_shards,
    resolve_source,
    resolve_target,
)
from moe_codegen.errors import CheckpointError
from moe_codegen.modeling import ExpertQuantisationConfig, MoEConfig
from moe_codegen.modeling.quantisation import stored_model
from moe_codegen.moe.quantised import SCALES
from moe_codegen.reporting import Progress, no_progress
from moe_codegen.upcycle.card import LOAD_MIXTURE, model_card
from moe_codegen.upcycle.mixture import open_mixture
from moe_codegen.upcycle.options import parse_size
from moe_codegen.upcycle.output import write_from_mixture
from moe_codegen_kernels.quantised_weights import ROWS_AT_ONCE, round_to, scales_of


@dataclass(frozen=True)
class QuantiseReport:
    """What was written: the folder, how its experts are stored, and the bytes of source and result."""

    out: Path
    quantisation: ExpertQuantisationConfig
    source_bytes: int
    nbytes: int
    files: dict[str, dict[str, Any]]


def quantise(
    source: str | Path,
    out: str | Path,
    *,
    bits: int = 8,
    group_size: int | None = None,
    max_shard_size: str = "5GB",
    progress: Progress = no_progress,
) -> QuantiseReport:
    """Write the mixture `source` with quantised experts; `from_pretrained` loads the result by itself.

    A killed run goes on where it stopped when the same call is made again; until it is done nothing at `out` loads.

    Args:
        source: the mixture, a folder or hub id.
        out: folder to create.
        bits, group_size: as in `ExpertQuantisationConfig`.
        max_shard_size: of one weight file.
        progress: as for `upcycle`.

    Raises:
        ConfigError: bits or groups that cannot be.
        CheckpointError: the source is no readable mixture, is quantised already, or holds weights that are not finite.
        OutputError, ResumeError: as for `upcycle`.
    """
    out = resolve_target(out)
    folder = resolve_source(source)
    quantisation = ExpertQuantisationConfig(bits=bits, group_size=group_size)
    config, reader = open_mixture(folder)
    quantised = copy.deepcopy(config)
    quantised.quantization_config = quantisation
    shards = into_shards(_tensors(reader, quantised, quantisation), parse_size(max_shard_size))
    files = write_from_mixture(
        source,
        reader,
        out,
        shards,
        {"bits": bits, "group_size": group_size, "max_shard_size": max_shard_size},
        card=lambda record: model_card(
            record,
            folder,
            title=f"experts in int{bits}",
            what=f"The mixture `{source}` with its experts quantised",
            facts=[f"Its experts: {quantisation}; everything else is as it was."],
            code=LOAD_MIXTURE,
            tags="mixture-of-experts, code, upcycled",
        ),
        write_config=quantised.save_pretrained,
        step="quantising the experts",
        progress=progress,
    )
    return QuantiseReport(out, quantisation, reader.nbytes, sum(shard.nbytes for shard in shards), files)


def _tensors(
    reader: CheckpointReader, config: MoEConfig, quantisation: ExpertQuantisationConfig
) -> Iterator[TensorToWrite]:
    """Every tensor of the checkpoint that `config`, with its quantisation, describes."""
    parameters = dict(stored_model(config).named_parameters())
    for name, parameter in parameters.items():
        weight, shape = name.removesuffix(SCALES), tuple(parameter.shape)
        if weight + SCALES not in parameters:
            yield TensorToWrite(name, shape, reader.headers[name].dtype, partial(_as_it_is, reader, name))
        else:
            give_scales = name != weight
            pieces = partial(_quantised, reader, weight, quantisation, give_scales)
            yield TensorToWrite(name, shape, parameter.dtype, pieces)


def _as_it_is(reader: CheckpointReader, name: str) -> list[torch.Tensor]:
    return [reader[name]]


def _quantised(
    reader: CheckpointReader, name: str, quantisation: ExpertQuantisationConfig, give_scales: bool
) -> Iterator[torch.Tensor]:
    """The scales of an expert weight, or what is stored beside them; scales are cheap enough to be found twice."""
    weight = reader[name]
    group = quantisation.group_size or weight.shape[-1]
    for rows_NK in weight.flatten(0, 1).split(ROWS_AT_ONCE):
        try:
            scales_NG = scales_of(rows_NK, quantisation.bits, group)
        except ValueError as error:
            raise CheckpointError(f"{reader.folder}, {name}: {error}") from error
        yield scales_NG if give_scales else round_to(rows_NK, scales_NG, quantisation.bits)
