"""Mixtures made by hand from tiny dense models, so that the model is tested without `upcycle`."""

import torch
from transformers import PreTrainedModel

from moe_codegen import MoEConfig, MoEForCausalLM
from tests.tiny import dense_model

IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm", "moe_codegen"]
LAYERS = {"gpt_bigcode": "transformer.h"}  # every other family: model.layers
GATED = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}
FFNS = {
    "gpt_bigcode": {"up": "c_fc", "down": "c_proj"},
    "starcoder2": {"up": "c_fc", "down": "c_proj"},
    "phi": {"up": "fc1", "down": "fc2"},
    "phi3": {"gate_up": "gate_up_proj", "down": "down_proj"},
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), GATED),
}
SMALL = dict(num_experts=4, router_aux_loss_coef=0.5, router_z_loss_coef=0.1)


def mixture_of(dense: PreTrainedModel, spread: float = 0.0, seed: int = 1, **fields) -> MoEForCausalLM:
    """A mixture of copies of the dense model's FFNs; `spread` > 0 makes the copies differ by that much noise."""
    family = dense.config.model_type
    moe = MoEForCausalLM(MoEConfig.from_dense(dense.config, **{**SMALL, **fields})).eval()
    layers, ffn = LAYERS.get(family, "model.layers"), FFNS[family]
    expected = set(moe.state_dict())
    state = {}
    for name, tensor in dense.state_dict().items():
        layer = name.removeprefix(layers + ".").partition(".")[0]
        if ".mlp." not in name or int(layer) not in moe.config.sparse_layers:
            state[name] = tensor
            continue
        part, _, kind = name.partition(".mlp.")[2].partition(".")
        if moe.config.shared_expert:
            state[f"{layers}.{layer}.mlp.shared_expert.{part}.{kind}"] = tensor
        role = next(role for role, module in ffn.items() if module == part)
        if role == "gate":
            continue  # goes in with `up`, below
        stored = {"up": "gate_up_proj" if "gate" in ffn else "up_proj"}.get(role, f"{role}_proj")
        if role == "up" and "gate" in ffn:
            gate = dense.state_dict()[f"{layers}.{layer}.mlp.{ffn['gate']}.{kind}"]
            tensor = torch.cat([gate, tensor])
        suffix = "" if kind == "weight" else "_bias"
        state[f"{layers}.{layer}.mlp.experts.{stored}{suffix}"] = tensor.expand(moe.config.num_experts, *tensor.shape)
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(expected - state.keys()):
        assert ".mlp.gate." in name, f"{name} is not a router and was given no value"
        state[name] = 0.2 * torch.randn(moe.state_dict()[name].shape, generator=generator)
    for name, tensor in state.items():
        if ".experts." in name and spread:
            state[name] = tensor + spread * torch.randn(tensor.shape, generator=generator)
    moe.load_state_dict(state)
    return moe


def mixture(family: str, spread: float = 0.1, dense: dict | None = None, **fields) -> MoEForCausalLM:
    """A tiny mixture of distinct experts."""
    return mixture_of(dense_model(family, **(dense or {})), spread=spread, **fields)


def tokens(rows: int = 2, length: int = 12, seed: int = 2) -> torch.Tensor:
    """(rows, length) random ids, none of them the end of text."""
    return torch.randint(5, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
