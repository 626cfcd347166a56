"""Turn dense code language models into sparse mixtures of experts, and run them fast.

The model classes are imported on first use, so that what needs no torch (`moe_codegen.data` and its worker
processes) does not pay for it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_codegen.modeling import MoEConfig as MoEConfig
    from moe_codegen.modeling import MoEForCausalLM as MoEForCausalLM

__all__ = ["MoEConfig", "MoEForCausalLM"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from moe_codegen import modeling

        return getattr(modeling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
