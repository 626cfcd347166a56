"""Checkpoints of the exact published layout and size, with random weights: what a download would be, without one.

`python -m benchmarks.published MODEL FOLDER` writes one; MODEL is one of those below.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig

from moe_codegen.architectures.dense import empty_model
from moe_codegen.checkpoint import TensorToWrite, into_shards, write_index, write_shard

SANTACODER = {
    "model_type": "gpt_bigcode",
    "architectures": ["GPTBigCodeForCausalLM"],
    "vocab_size": 49280,
    "n_positions": 2048,
    "n_embd": 2048,
    "n_layer": 24,
    "n_head": 16,
    "n_inner": 8192,
    "multi_query": True,
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-5,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "bos_token_id": 49152,
    "eos_token_id": 49152,
    "torch_dtype": "float16",
}
PHI_2 = {
    "model_type": "phi",
    "architectures": ["PhiForCausalLM"],
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "rope_theta": 10000.0,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.1,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
# Published configuration, and the size its weight files were cut at.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "santacoder": (SANTACODER, 10 * 10**9),
    "phi-2": (PHI_2, 5 * 10**9),
}
BLOCK_ROWS = 1024


def write_published(
    name: str, folder: Path, num_layers: int | None = None, advance: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Write the checkpoint `name` at `folder`, with fewer layers if asked; float16, every value random."""
    raw, shard_bytes = PUBLISHED[name]
    layers_key = "n_layer" if "n_layer" in raw else "num_hidden_layers"
    raw = {**raw, layers_key: num_layers or raw[layers_key]}
    fields = {key: value for key, value in raw.items() if key != "model_type"}
    model = empty_model(AutoConfig.for_model(raw["model_type"], **fields))
    folder.mkdir(parents=True)
    tensors = [
        TensorToWrite(parameter, tuple(p.shape), torch.float16, partial(_random, parameter, tuple(p.shape)))
        for parameter, p in model.named_parameters()
    ]
    shards = into_shards(tensors, shard_bytes)
    for shard in shards:
        write_shard(folder, shard, advance)
    write_index(folder, shards)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Flags for a case that runs on a published model and its mixture."""
    parser.add_argument("--model", choices=PUBLISHED, default="santacoder")
    parser.add_argument("--num-layers", type=int, help="fewer than published, for a smaller trial")
    parser.add_argument("--num-experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="holds source and mixture, and keeps them [a temporary one]")


@contextmanager
def source_and_mixture(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Paths of the source, written if it is not there, and of its mixture; a temporary folder is removed after."""
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(TemporaryDirectory(prefix="moe-codegen-")))
        source = folder / options.model
        if not source.exists():
            write_published(options.model, source, options.num_layers)
        yield source, folder / f"{options.model}-moe"


def _random(name: str, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Weights from N(0, 0.02), norms near 1; a block of rows drawn once and repeated, for speed, each its own shift."""
    is_norm = re.search(r"(ln_\w+|norm)\.weight$", name) is not None
    rows = min(shape[0], BLOCK_ROWS)
    block = torch.randn((rows, *shape[1:])) * 0.02 + (1.0 if is_norm else 0.0)
    starts = range(0, shape[0], rows)
    return [block.roll(index, dims=-1)[: shape[0] - start].half() for index, start in enumerate(starts)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=PUBLISHED)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-layers", type=int, help="fewer than published, for a smaller trial")
    options = parser.parse_args()
    write_published(options.model, options.folder, options.num_layers)
