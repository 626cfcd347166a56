"""`verify`: is a mixture on disk what it was written as, and does it still compute what its dense source did?"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.checkpoint import load_tokenizer, read_json, resolve_source, sha256_of
from moe_codegen.errors import CheckpointError, ConfigError
from moe_codegen.modeling import MoEForCausalLM
from moe_codegen.modeling.quantisation import quantisation_of
from moe_codegen.moe import Routing, TopKRouter
from moe_codegen.reporting import Progress, no_progress
from moe_codegen.upcycle.mapped import computing_in_fp32, mapped_dense, mapped_moe, observing
from moe_codegen.upcycle.mixture import open_mixture
from moe_codegen.upcycle.provenance import PROVENANCE_FILE

TOLERANCE = 5e-6
SAMPLE = '''\
def quicksort(items: list[int]) -> list[int]:
    """Sort without changing the argument."""
    if len(items) <= 1:
        return items
    pivot, *rest = items
    return quicksort([x for x in rest if x < pivot]) + [pivot] + quicksort([x for x in rest if x >= pivot])
'''


@dataclass(frozen=True)
class LayerCheck:
    """One stage of the model: the relative error of its output, and how its experts were used.

    Attributes:
        stage: "layer 3", or "logits".
        relative_error: |moe - dense| / |dense|, Frobenius norms, of what leaves this stage when both models run
            from the same tokens; errors of earlier stages are in it. Infinite where a value is not finite.
        expert_load: share of the (token, choice) pairs each expert took; None where the layer is dense.
    """

    stage: str
    relative_error: float
    expert_load: list[float] | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        rows: a check for each layer, and one for the logits.
        tolerance: the largest relative error that still counts as equal.
        damaged: files whose bytes are not those that were written.
        checked_files: how many files were compared with `upcycle.json`.
        not_run: why nothing was run, where it is no fault: the experts are quantised, and compute something else.
    """

    rows: list[LayerCheck]
    tolerance: float
    damaged: list[str] = field(default_factory=list)
    checked_files: int = 0
    not_run: str | None = None

    @property
    def max_relative_error(self) -> float:
        """The largest error of any stage; 0 where nothing was run."""
        return max((row.relative_error for row in self.rows), default=0.0)

    @property
    def first_departure(self) -> str | None:
        """The first stage beyond the tolerance; None if there is none."""
        return next((row.stage for row in self.rows if row.relative_error > self.tolerance), None)

    @property
    def passed(self) -> bool:
        """Whether every file is whole and every stage equal."""
        return not self.damaged and self.first_departure is None


def verify(
    source: str | Path,
    moe: str | Path,
    text: str | None = None,
    *,
    tolerance: float = TOLERANCE,
    max_tokens: int = 128,
    files: bool = True,
    progress: Progress = no_progress,
) -> VerifyReport:
    """Compare a mixture with its dense source, file by file and layer by layer.

    Both models run in fp32 over the same tokens, straight from their mapped files, so models larger than memory can
    be verified. If the mixture was written in another dtype, the dense weights are rounded to it first: what is judged
    is the conversion, not the dtype. Copied experts with renormalised weights must agree; experts that were
    diversified, or come from different checkpoints, depart where the first of them is, and the report says where. Of a
    mixture with quantised experts only the files are compared.

    Args:
        source: the dense checkpoint, a folder or hub id.
        moe: the mixture's folder or hub id.
        text: what to run them on; None for a built-in sample of code, or of token ids where there is no tokenizer.
        tolerance: the largest relative error that still counts as equal.
        max_tokens: how much of the text to use.
        files: whether to re-read every weight file and compare its SHA-256 with `upcycle.json`.
        progress: as for `upcycle`.

    Raises:
        CheckpointError: one of them cannot be read, or they are not of one family and shape.
        ConfigError: no text to compare on.
    """
    dense, folder = DenseCheckpoint(resolve_source(source)), resolve_source(moe)
    damaged, checked = _check_files(folder, progress) if files else ([], 0)
    if damaged:  # what is not as written need not even load
        return VerifyReport([], tolerance, damaged, checked)
    quantisation = quantisation_of(open_mixture(folder, allow_quantised=True)[0])
    if quantisation is not None and checked:
        return VerifyReport([], tolerance, damaged, checked, f"its experts are quantised ({quantisation})")
    mixture = mapped_moe(folder)
    _check_same_shape(dense, mixture)
    ids = _token_ids(dense, text if text is not None else SAMPLE)
    ids = ids[:, : min(max_tokens, dense.config.max_position_embeddings)]
    if max_tokens < 1 or not ids.numel():
        raise ConfigError(f"there are no tokens to compare on: max_tokens={max_tokens}, text={text!r}")
    layers = dense.architecture.layers
    expected = _states(mapped_dense(dense), layers, ids, rounded_to=mixture.dtype)
    loads: dict[str, list[float]] = {}
    actual = _states(mixture, layers, ids, loads=loads)
    rows = [
        LayerCheck(stage, _relative_error(actual[stage], state), loads.get(stage)) for stage, state in expected.items()
    ]
    return VerifyReport(rows, tolerance, damaged, checked)


def _states(
    model: PreTrainedModel,
    layers: str,
    ids: torch.Tensor,
    rounded_to: torch.dtype | None = None,
    loads: dict[str, list[float]] | None = None,
) -> dict[str, torch.Tensor]:
    """Stage -> what leaves it, for each layer and the logits; `loads` gets each sparse layer's expert load."""
    states: dict[str, torch.Tensor] = {}

    def observe(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Routing):
            assert isinstance(module, TopKRouter)
            assert loads is not None
            counts_E = torch.bincount(output.ids_TK.flatten(), minlength=len(module.weight))
            loads[name] = (counts_E / counts_E.sum()).tolist()
        else:
            hidden = output[0] if isinstance(output, tuple) else output
            assert isinstance(hidden, torch.Tensor)
            states[name] = hidden

    blocks = {f"layer {index}": layer for index, layer in model.get_submodule(layers).named_children()}
    gates = {
        stage: gate
        for stage, layer in blocks.items()
        if isinstance(gate := getattr(layer.get_submodule("mlp"), "gate", None), TopKRouter)
    }
    with (
        torch.inference_mode(),
        computing_in_fp32(model, rounded_to),
        observing(blocks, observe),
        observing(gates, observe),
    ):
        states["logits"] = model(input_ids=ids, use_cache=False).logits
    return states


def _check_files(folder: Path, progress: Progress) -> tuple[list[str], int]:
    path = folder / PROVENANCE_FILE
    written = read_json(path).get("files") if path.exists() else None
    if not written:
        return [], 0
    advance: Callable[[int], None] = progress("reading the mixture", sum(f["bytes"] for f in written.values()), 0)
    damaged = [
        name
        for name, file in written.items()
        if not (folder / name).exists() or sha256_of(folder / name, advance) != file["sha256"]
    ]
    return damaged, len(written)


def _check_same_shape(dense: DenseCheckpoint, mixture: MoEForCausalLM) -> None:
    config = mixture.config
    if config.architecture != dense.architecture:
        raise CheckpointError(
            f"the mixture is a {config.model_type}, {dense.reader.folder} a {dense.architecture.family}; "
            "give the checkpoint it was made from"
        )
    for key in ("hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(config, key), getattr(dense.config, key)
        if ours != theirs:
            raise CheckpointError(
                f"the mixture has {key} {ours}, {dense.reader.folder} {theirs}; give the checkpoint it was made from"
            )


def _token_ids(dense: DenseCheckpoint, text: str) -> torch.Tensor:
    tokenizer = load_tokenizer(dense.reader.folder, dense.config)
    if tokenizer is not None:
        return tokenizer(text, return_tensors="pt").input_ids
    # Without a tokenizer any ids will do: both models get the same.
    return torch.tensor([list(text.encode())]) % dense.config.vocab_size


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference, scale = torch.linalg.vector_norm(actual - expected), torch.linalg.vector_norm(expected)
    error = (difference / scale).item() if difference else 0.0
    return error if math.isfinite(error) else math.inf
