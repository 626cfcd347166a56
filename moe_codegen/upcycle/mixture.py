"""A mixture on disk, opened and found whole."""

from pathlib import Path

from moe_codegen.architectures.dense import empty_model
from moe_codegen.checkpoint import CheckpointReader, read_json
from moe_codegen.errors import CheckpointError
from moe_codegen.modeling import MoEConfig
from moe_codegen.modeling.configuration import MODEL_TYPE_PREFIX


def open_mixture(folder: Path) -> tuple[MoEConfig, CheckpointReader]:
    """Configuration and weights of the mixture in `folder`; reads headers only.

    Raises:
        CheckpointError: it is none, or its weights are not those its configuration asks for.
    """
    model_type = read_json(folder / "config.json").get("model_type", "")
    if not model_type.startswith(MODEL_TYPE_PREFIX):
        raise CheckpointError(
            f"{folder} is a {model_type or 'nameless'} model, not a mixture of this library; "
            f"make one with `moe-codegen upcycle {folder} OUT`"
        )
    config, reader = MoEConfig.from_pretrained(folder), CheckpointReader(folder)
    for name, parameter in empty_model(config).named_parameters():
        found = reader.headers.get(name)
        if found is None or found.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{folder} {'lacks' if found is None else f'holds {found.shape} for'} {name}, for which its "
                f"config.json asks as {tuple(parameter.shape)}; fetch or convert it again"
            )
    return config, reader
