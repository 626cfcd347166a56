"""What a record says of the model it is about, so that a number can be traced to the bytes it came from."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moe_codegen.checkpoint import resolve_source, sha256_of
from moe_codegen.upcycle.inspection import inspect_checkpoint

PACKAGES = ("moe-codegen", "torch", "transformers", "tokenizers")


def model_record(path: str | Path, model: PreTrainedModel) -> dict[str, Any]:
    """Name, kind, family, dtype, device, parameters and hashes of the model loaded from `path`.

    Args:
        path: its folder or hub id; of a folder the record keeps the last part, so that it is the same elsewhere.
        model: as it was loaded.
    """
    folder = resolve_source(path)
    inspection = inspect_checkpoint(folder)
    mixture = inspection.mixture
    record: dict[str, Any] = {
        "name": folder.name if Path(path).exists() else str(path),
        "kind": "mixture" if mixture else "dense",
        "family": inspection.family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "parameters": {"total": inspection.parameters.total, "active": inspection.parameters.active},
        "files": {
            file: sha256_of(folder / file)
            for file in ["config.json", "tokenizer.json", *inspection.files]
            if (folder / file).exists()
        },
    }
    if mixture:
        record |= {"num_experts": mixture.num_experts, "top_k": mixture.top_k, "expert_names": mixture.expert_names}
    return record


def versions() -> dict[str, str]:
    """Package -> version, of those that results may depend on."""
    return {package: version(package) for package in PACKAGES}
