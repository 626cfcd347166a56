"""Tiny checkpoints of every family and every published layout, with random weights, made without our own code.

The layouts are written out by hand here, so that the rules in `moe_codegen.architectures` are tested against
something else than themselves.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 128
GPT2_SHAPE = dict(n_embd=32, n_layer=3, n_head=4, n_inner=80, n_positions=64)
SHAPE = dict(
    hidden_size=32,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
FAMILIES = {
    "gpt_bigcode": GPT2_SHAPE,
    "phi": {**SHAPE, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "starcoder2": SHAPE,
    "llama": SHAPE,
    "mistral": SHAPE,
    "qwen2": SHAPE,
    "qwen3": {**SHAPE, "head_dim": 8},
    "gemma": {**SHAPE, "head_dim": 8},
    "phi3": {**SHAPE, "pad_token_id": 0},
}
LAYOUTS = {  # layout -> family
    **{family: family for family in FAMILIES},
    "santacoder": "gpt_bigcode",
    "santacoder-fused": "gpt_bigcode",
    "phi-fused": "phi",
    "phi-msft": "phi",
}
TEXT = "def add(first, second):\n    return first + second\n\nclass Stack { push(item) { this.items.push(item); } }"


def dense_model(family: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A dense model in fp32 whose every parameter, biases and norms too, is random and of ordinary size."""
    fields = {**FAMILIES[family], "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, **overrides}
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or ".ln_" in name
            parameter.copy_(1 + 0.1 * noise if is_norm and name.endswith("weight") else 0.2 * noise)
    return model.eval()


def save_dense(
    folder: Path, layout: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides
) -> PreTrainedModel:
    """Write a checkpoint in `layout` with a tokenizer; returns the model, in `dtype`, that it holds."""
    model = dense_model(LAYOUTS[layout], seed, **overrides).to(dtype)
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(folder)
    save_tokenizer(folder)
    if layout in FAMILIES:
        return model
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    stored, config = {
        "santacoder": santacoder,
        "santacoder-fused": santacoder_fused,
        "phi-fused": phi_fused,
        "phi-msft": phi_msft,
    }[layout](tensors, json.loads((folder / "config.json").read_text()))
    save_file({name: t.contiguous() for name, t in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return model


def santacoder(tensors, config):
    """bigcode/santacoder: Conv1D weights `[in, out]`, query apart from key and value, mask buffers."""
    stored = {}
    for name, tensor in tensors.items():
        if "attn.c_attn" in name:
            query, key_value = tensor[: config["n_embd"]], tensor[config["n_embd"] :]
            stored[name.replace("c_attn", "q_attn")] = query.t() if tensor.dim() == 2 else query
            stored[name.replace("c_attn", "kv_attn")] = key_value.t() if tensor.dim() == 2 else key_value
        elif ".h." in name and tensor.dim() == 2:
            stored[name] = tensor.t()
        else:
            stored[name] = tensor
    return stored | _masks(config), _gpt2_config(config)


def santacoder_fused(tensors, config):
    """Conv1D weights with one projection for query, key and value."""
    stored = {name: t.t() if ".h." in name and t.dim() == 2 else t for name, t in tensors.items()}
    return stored | _masks(config), _gpt2_config(config)


def phi_fused(tensors, config):
    """transformers 4.36: `query_key_value` with rows ordered (head, projection, head_dim)."""
    heads = config["num_attention_heads"]
    stored = {name: t for name, t in tensors.items() if not any(f"{p}_proj" in name for p in "qkv")}
    for layer in range(config["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [tensors[f"{attention}.{p}_proj.{kind}"].reshape(heads, 8, -1) for p in "qkv"]
            rows = [part[head] for head in range(heads) for part in parts]
            fused = torch.cat(rows)
            stored[f"{attention}.query_key_value.{kind}"] = fused if kind == "weight" else fused.flatten()
    return stored, config


def phi_msft(tensors, config):
    """Microsoft's first modelling code: `Wqkv` is query, then key, then value."""
    stored = {}
    for name, tensor in tensors.items():
        if "_proj" in name:
            continue
        for new, old in (
            ("model.embed_tokens", "transformer.embd.wte"),
            ("model.final_layernorm", "lm_head.ln"),
            ("lm_head.weight", "lm_head.linear.weight"),
            ("lm_head.bias", "lm_head.linear.bias"),
            ("model.layers", "transformer.h"),
            ("input_layernorm", "ln"),
            ("self_attn.dense", "mixer.out_proj"),
        ):
            name = name.replace(new, old)
        stored[name] = tensor
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [tensors[f"model.layers.{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            stored[f"transformer.h.{layer}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    return stored, {
        "model_type": "phi-msft",
        "architectures": ["PhiForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi.PhiConfig"},
        "vocab_size": config["vocab_size"],
        "n_embd": config["hidden_size"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_head_kv": None,
        "n_positions": config["max_position_embeddings"],
        "rotary_dim": head_dim // 2,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config["layer_norm_eps"],
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": config["dtype"],
    }


def _masks(config):
    positions = config["n_positions"]
    masks = {}
    for layer in range(config["n_layer"]):
        mask = torch.ones(positions, positions, dtype=torch.uint8).tril()
        masks[f"transformer.h.{layer}.attn.bias"] = mask.view(1, 1, positions, positions)
        masks[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return masks


def _gpt2_config(config):
    kept = {key: value for key, value in config.items() if key != "multi_query"}
    return {
        **kept,
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadCustomModel"],
        "attention_head_type": "multiquery",
        "auto_map": {"AutoModelForCausalLM": "modeling_gpt2_mq.GPT2LMHeadCustomModel"},
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose vocabulary fits the tiny models, with SantaCoder's sentinels."""
    sentinels = ["<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=sentinels, show_progress=False)
    bpe.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=sentinels[0], bos_token=sentinels[0], pad_token=sentinels[-1]
    )


def save_tokenizer(folder: Path) -> None:
    """Write `tokenizer()` beside a checkpoint."""
    tokenizer().save_pretrained(folder)
