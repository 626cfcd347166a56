"""A mixture on disk, opened and found whole."""

from pathlib import Path

from moe_codegen.architectures import is_mixture
from moe_codegen.checkpoint import CheckpointReader, read_config
from moe_codegen.errors import CheckpointError
from moe_codegen.modeling import MoEConfig
from moe_codegen.modeling.quantisation import quantisation_of, stored_model


def open_mixture(
    folder: Path, allow_quantised: bool = False, weights: bool = True
) -> tuple[MoEConfig, CheckpointReader]:
    """Configuration and weights of the mixture in `folder`; reads headers only, and needs no more without `weights`.

    Raises:
        CheckpointError: it is none, its weights are not just those its configuration asks for, or its experts are
            quantised and that is not allowed.
    """
    found = read_config(folder)
    if not is_mixture(found):
        raise CheckpointError(
            f"{folder} is a {found['model_type'] or 'nameless'} model, not a mixture of this library; "
            f"make one with `moe-codegen upcycle {folder} OUT`"
        )
    config, reader = MoEConfig.from_pretrained(folder), CheckpointReader(folder, weights)
    quantisation = quantisation_of(config)
    if quantisation is not None and not allow_quantised:
        raise CheckpointError(
            f"the experts of {folder} are quantised ({quantisation}); give the mixture that it was made from"
        )
    model = stored_model(config)
    for name, parameter in model.named_parameters():
        header = reader.headers.get(name)
        if header is None or header.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{folder} {'lacks' if header is None else f'holds {header.shape} for'} {name}, and its config.json "
                f"asks for {tuple(parameter.shape)}; fetch or convert it again"
            )
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # tied ones may be stored twice
    unknown = sorted(reader.keys() - known)
    if unknown:
        raise CheckpointError(
            f"{folder} holds {unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, which its "
            "config.json has no place for, and nothing is dropped silently: merge adapters first, or remove the tensor "
            "if you know what it is"
        )
    return config, reader
