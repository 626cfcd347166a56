"""Memory follows the largest tensor, and neither the layer, the shard nor the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_codegen import upcycle
from tests.tiny import save_dense

SHAPE = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """About 50 MB in fp16, of which one FFN matrix is 8.4 MB."""
    folder = tmp_path_factory.mktemp("middling")
    save_dense(folder, "phi", torch.float16, **SHAPE)
    return folder


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"granularity": 2, "top_k": 4, "num_experts": 16, "noise_std": 0.1, "drop_ratio": 0.5}],
)
def test_a_conversion_holds_a_tensor_and_not_a_layer(options, source, tmp_path):
    options = {"num_experts": 8, "workers": 1, **options}
    ffn_matrix = 1024 * 4096 * 2
    plan = upcycle(source, tmp_path / "moe", **options, dry_run=True).plan
    layer = 2 * 8 * ffn_matrix
    assert plan.nbytes > 2 * layer > 250e6
    command = [sys.executable, "-m", "tests.upcycle.measure_memory", source, tmp_path / "moe", json.dumps(options)]
    # A block of this size is given back when it is freed, as it is at full size: glibc keeps only smaller ones.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    # Some FFN matrices, an fp32 one among them, and a chunk being written; one layer's experts would be 134 MB.
    assert int(run.stdout) < 7 * ffn_matrix + 32e6 < layer
