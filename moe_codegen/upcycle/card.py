"""The model card of a mixture: what it is, where it came from, how to run it."""

from typing import Any

from moe_codegen.reporting import format_bytes
from moe_codegen.upcycle.plan import Plan

CARD = """---
library_name: moe_codegen
pipeline_tag: text-generation
tags: [mixture-of-experts, code, upcycled]
---

# {title}

A sparse mixture of experts made from the dense `{family}` checkpoint `{source}` with moe-codegen {version}.

- {parameters:,} parameters, {size}; {sparse} of {layers} layers are mixtures.
- {experts} experts in each, {top_k} take each token.{named}
- Experts: {how}. Router: {router}.
{warnings}
## Use

```python
from moe_codegen import MoEForCausalLM
from transformers import AutoTokenizer

model = MoEForCausalLM.from_pretrained(PATH)
tokenizer = AutoTokenizer.from_pretrained(PATH)
```

`upcycle.json` holds the SHA-256 of every source and result, the options, the versions, and for each tensor what it
was made from. The licence is that of the source.
"""


def model_card(plan: Plan, provenance: dict[str, Any], warnings: list[str]) -> str:
    """The text of the mixture's README.md."""
    config, options = plan.config, provenance["options"]
    how = next(planned.how for planned in plan.tensors if ".experts." in planned.tensor.name)
    given = provenance["source"]["given"]
    return CARD.format(
        title=f"{given.rstrip('/').rsplit('/')[-1]}, {config.num_experts} experts",
        family=config.architecture.family,
        source=given,
        version=provenance["versions"]["moe-codegen"],
        parameters=plan.num_parameters,
        size=format_bytes(plan.nbytes),
        sparse=len(config.sparse_layers),
        layers=config.num_hidden_layers,
        experts=config.num_experts,
        top_k=config.num_experts_per_tok,
        named=f" They are: {', '.join(config.expert_names)}." if config.expert_names else "",
        how=how,
        router=options["router"],
        warnings="".join(f"- Note: {warning}.\n" for warning in warnings),
    )
