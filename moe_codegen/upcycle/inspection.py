"""What a checkpoint on disk is, from its headers alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_codegen.architectures import DenseCheckpoint, is_mixture
from moe_codegen.checkpoint import CheckpointReader, read_config, read_json
from moe_codegen.modeling.parameters import ParameterCount, count_parameters
from moe_codegen.modeling.quantisation import quantisation_of
from moe_codegen.upcycle.mixture import open_mixture
from moe_codegen.upcycle.provenance import PROVENANCE_FILE


@dataclass(frozen=True)
class Mixture:
    """What only a mixture has; the fields are those of `MoEConfig`, and how its experts are quantised, in words."""

    num_experts: int
    top_k: int
    expert_width: int
    expert_names: list[str] | None
    granularity: int
    sparse_layers: list[int]
    shared_expert_weight: float | None
    router: str
    norm_topk_prob: bool
    quantisation: str | None


@dataclass(frozen=True)
class Inspection:
    """A dense or mixture checkpoint as its headers and settings describe it.

    Attributes:
        path: its folder.
        family: transformers' name of the dense family, such as gpt_bigcode.
        layout: how its tensors are named and oriented; of a mixture, how its dense source's were.
        num_layers, hidden_size, ffn_width, vocabulary, positions: sizes; `ffn_width` is a dense layer's.
        mixture: what only a mixture has; None for a dense checkpoint.
        parameters: total and active parameters.
        dtypes: dtype -> bytes stored in it.
        files: the weight files.
        provenance: what the checkpoint's `upcycle.json` says, but for its list of tensors; `{}` without one.
    """

    path: Path
    family: str
    layout: str | None
    num_layers: int
    hidden_size: int
    ffn_width: int
    vocabulary: int
    positions: int | None
    mixture: Mixture | None
    parameters: ParameterCount
    dtypes: dict[str, int]
    files: list[str]
    provenance: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(self.dtypes.values())


def inspect_checkpoint(folder: str | Path) -> Inspection:
    """Describe the checkpoint in `folder`; reads settings and headers, never weights.

    Raises:
        CheckpointError: it is incomplete, damaged, of an unknown kind, or its weights do not fit its settings.
        ConfigError: the settings of a mixture that cannot hold.
    """
    folder = Path(folder)
    if is_mixture(read_config(folder)):
        return _inspect_mixture(folder)
    return _inspect_dense(DenseCheckpoint(folder, weights=False))


def _inspect_dense(dense: DenseCheckpoint) -> Inspection:
    config = dense.config
    return Inspection(
        path=dense.reader.folder,
        family=dense.architecture.family,
        layout=dense.layout.name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_width=dense.architecture.ffn.width_of(config),
        vocabulary=config.vocab_size,
        positions=getattr(config, "max_position_embeddings", None),
        mixture=None,
        parameters=count_parameters(config, dense.shapes),
        dtypes=_dtypes(dense.reader),
        files=dense.reader.files,
        provenance=_provenance(dense.reader.folder),
    )


def _inspect_mixture(folder: Path) -> Inspection:
    config, reader = open_mixture(folder, allow_quantised=True, weights=False)
    return Inspection(
        path=folder,
        family=config.architecture.family,
        layout=(config.source or {}).get("layout"),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_width=config.architecture.ffn.width_of(config),
        vocabulary=config.vocab_size,
        positions=getattr(config, "max_position_embeddings", None),
        mixture=Mixture(
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            expert_width=int(config.moe_intermediate_size or 0),
            expert_names=config.expert_names,
            granularity=config.expert_granularity,
            sparse_layers=config.sparse_layers,
            shared_expert_weight=config.shared_expert_weight if config.shared_expert else None,
            router=config.router_type,
            norm_topk_prob=config.norm_topk_prob,
            quantisation=str(quantisation) if (quantisation := quantisation_of(config)) else None,
        ),
        parameters=count_parameters(config),
        dtypes=_dtypes(reader),
        files=reader.files,
        provenance=_provenance(folder),
    )


def _dtypes(reader: CheckpointReader) -> dict[str, int]:
    """dtype -> bytes, the largest share first."""
    sizes: dict[str, int] = {}
    for header in reader.headers.values():
        dtype = str(header.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + header.nbytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE_FILE
    record = read_json(path) if path.exists() else {}
    record.pop("tensors", None)  # as long as the checkpoint's header, and as little to be read by a person
    return record
