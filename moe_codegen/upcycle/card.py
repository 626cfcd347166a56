"""The model card of what is written: what it is, where it came from, how to run it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe_codegen.reporting import format_bytes
from moe_codegen.upcycle.plan import Plan

CARD = """---
{settings}
---

# {title}

{what} with moe-codegen {version}.

{facts}

## Use

```python
{code}
```

`upcycle.json` holds what it was made from and how, the versions, and the SHA-256 of every weight file. The licence is
that of the source.
"""
LOAD_MIXTURE = """from moe_codegen import MoEForCausalLM
from transformers import AutoTokenizer

path = "."  # this folder, or its hub id
model = MoEForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)"""
LOAD_STOCK = """from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or its hub id
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)"""
LOAD_DENSE = """from moe_codegen.generation import load_model

path = "."  # this folder, or its hub id
model, tokenizer = load_model(path)"""


def model_card(
    record: dict[str, Any], source: Path, *, title: str, what: str, facts: Iterable[str], code: str, tags: str
) -> str:
    """The text of a README.md.

    Args:
        record: what `upcycle.json` says.
        source: the folder it was made from, whose card may name a licence and a base.
        title: follows the source's name.
        what: what it is and what of, as the beginning of a sentence.
        facts: one each line.
        code: how to load it.
        tags: of the Hub, between commas.
    """
    given = record["source"]["given"]
    from_hub = record["source"]["commit"] is not None and not Path(given).exists()
    base = given.partition("@")[0] if from_hub else _said_in_card(source, "base_model")
    settings = {
        "library_name": "transformers" if code == LOAD_STOCK else "moe_codegen",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "license": _said_in_card(source, "license"),
        "tags": f"[{tags}]",
    }
    return CARD.format(
        settings="\n".join(f"{key}: {value}" for key, value in settings.items() if value),
        title=f"{given.rstrip('/').rsplit('/')[-1]}, {title}",
        what=what,
        version=record["versions"]["moe-codegen"],
        facts="\n".join(f"- {fact}" for fact in facts),
        code=code,
    )


def mixture_card(plan: Plan, record: dict[str, Any], source: Path, warnings: Iterable[str]) -> str:
    """The card of a mixture that was made of dense checkpoints."""
    config, options = plan.config, record["options"]
    how = next(planned.how for planned in plan.tensors if ".experts." in planned.tensor.name)
    named = f" They are: {', '.join(config.expert_names)}." if config.expert_names else ""
    return model_card(
        record,
        source,
        title=f"{config.num_experts} experts",
        what="A sparse mixture of experts made from the dense "
        f"`{config.architecture.family}` checkpoint `{record['source']['given']}`",
        facts=[
            f"{plan.num_parameters:,} parameters, {format_bytes(plan.nbytes)}; "
            f"{len(config.sparse_layers)} of {config.num_hidden_layers} layers are mixtures.",
            f"{config.num_experts} experts in each, {config.num_experts_per_tok} take each token.{named}",
            f"Experts: {how}. Router: {options['router']}.",
            *(f"Note: {warning}." for warning in warnings),
        ],
        code=LOAD_MIXTURE,
        tags="mixture-of-experts, code, upcycled",
    )


def _said_in_card(folder: Path, key: str) -> str | None:
    """What the head of the README.md in `folder` says of `key`, if that is one word."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = text.partition("\n---")[0] if text.startswith("---\n") else ""
    found = re.search(rf"^{key}: *[\"']?([\w./-]+)[\"']?$", head, re.MULTILINE)
    return found[1] if found else None
