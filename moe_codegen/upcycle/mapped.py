"""Running models straight from their files: weights stay memory-mapped, and are widened a layer at a time.

A model larger than memory runs this way, at the speed of the disk. Only its arithmetic is fp32; nothing is copied
but the layer at work.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from moe_codegen.architectures import DenseCheckpoint
from moe_codegen.modeling import MoEForCausalLM
from moe_codegen.upcycle.mixture import open_mixture


def mapped_dense(dense: DenseCheckpoint) -> PreTrainedModel:
    """The stock model of a dense checkpoint in any layout."""
    model_class = AutoModelForCausalLM._model_mapping[type(dense.config)]
    return _mapped(model_class, dense.config, dense)


def mapped_moe(folder: Path) -> MoEForCausalLM:
    """The mixture stored in `folder`."""
    config, reader = open_mixture(folder)
    config._experts_implementation = "eager"  # one expert's rows after another: the least memory
    return _mapped(MoEForCausalLM._class_for(config), config, reader)


@contextmanager
def computing_in_fp32(model: PreTrainedModel, rounded_to: torch.dtype | None = None) -> Iterator[None]:
    """While this is open each leaf module's parameters are fp32 during its own forward, and only then.

    `rounded_to` first rounds them to a narrower dtype, as a checkpoint stored in it would have them.
    """

    def widen(module: nn.Module, inputs: object) -> None:
        stored[module] = {name: parameter.data for name, parameter in module.named_parameters(recurse=False)}
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(rounded_to or parameter.dtype).float()

    def restore(module: nn.Module, inputs: object, output: object) -> None:
        tensors = stored.pop(module)
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = tensors[name]

    stored: dict[nn.Module, dict[str, torch.Tensor]] = {}
    handles = []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def observing(
    modules: Mapping[str, nn.Module], observe: Callable[[str, nn.Module, object, object], None]
) -> Iterator[None]:
    """While this is open `observe(name, module, inputs, output)` is called after each forward of `modules`."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: observe(name, module, inputs, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mapped(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, tensors: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # nothing is read here that would be worth watching
    try:
        # Given tensors, transformers makes them the parameters themselves instead of reading files into new ones.
        model = model_class.from_pretrained(None, config=config, state_dict=dict(tensors), dtype="auto")
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval()
