"""What lets a tool that never imports this library load a mixture, given `trust_remote_code=True`.

`auto_map` in `config.json` names classes in a file beside it; ours only imports this library, which must be installed.
"""

MODULE = "moe_codegen_classes"
_AUTO_CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}


def auto_map_of(class_prefix: str) -> dict[str, str]:
    """transformers' Auto class -> where it finds ours, for the family whose classes begin with `class_prefix`."""
    return {auto_class: f"{MODULE}.MoE{class_prefix}{suffix}" for auto_class, suffix in _AUTO_CLASSES.items()}


def module_of(class_prefix: str) -> str:
    """The text of the file that `auto_map_of` names."""
    names = ", ".join(f"MoE{class_prefix}{suffix}" for suffix in _AUTO_CLASSES.values())
    return f'"""The classes of the installed moe-codegen."""\n\nfrom moe_codegen.modeling.families import {names}\n'
