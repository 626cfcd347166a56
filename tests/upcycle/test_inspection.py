"""What `inspect_checkpoint` says of dense checkpoints and mixtures, and what it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_codegen import upcycle
from moe_codegen.errors import CheckpointError
from moe_codegen.upcycle.inspection import inspect_checkpoint
from tests.tiny import LAYOUTS, save_dense


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dense_checkpoint_in_any_layout(layout, tmp_path):
    model = save_dense(tmp_path, layout, torch.float16)
    found = inspect_checkpoint(tmp_path)
    assert (found.family, found.layout, found.num_layers) == (LAYOUTS[layout], layout, 3)
    assert (found.hidden_size, found.ffn_width, found.vocabulary, found.positions) == (32, 80, 128, 64)
    assert found.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert found.dtypes["float16"] == 2 * found.parameters.total
    assert found.mixture is None
    assert found.provenance == {}


def test_a_mixture_says_what_it_is_and_where_it_came_from(tmp_path):
    save_dense(tmp_path / "dense", "phi-msft")
    report = upcycle(
        tmp_path / "dense",
        tmp_path / "moe",
        num_experts=4,
        top_k=2,
        granularity=2,
        layers="0,2",
        shared_expert=True,
        dtype="bfloat16",
        max_shard_size="40KB",
    )
    found = inspect_checkpoint(tmp_path / "moe")
    assert (found.family, found.layout) == ("phi", "phi-msft")
    assert found.mixture is not None
    assert (found.mixture.num_experts, found.mixture.top_k, found.mixture.expert_width) == (4, 2, 40)
    assert (found.mixture.granularity, found.mixture.sparse_layers) == (2, [0, 2])
    assert found.mixture.shared_expert_weight == 0.5
    assert found.parameters.total == report.plan.num_parameters
    assert found.nbytes == report.plan.nbytes
    assert found.files == sorted(report.files)
    assert found.provenance["files"] == report.files
    assert found.provenance["source"]["given"] == str(tmp_path / "dense")
    assert "tensors" not in found.provenance


def test_a_trained_mixture_without_provenance_is_inspected_all_the_same(tmp_path):
    save_dense(tmp_path / "dense", "llama")
    upcycle(tmp_path / "dense", tmp_path / "moe")
    (tmp_path / "moe" / "upcycle.json").unlink()
    found = inspect_checkpoint(tmp_path / "moe")
    assert found.mixture is not None
    assert found.provenance == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj"), "lacks it"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.ones(4, 4)}), "stores it as"),
    ],
)
def test_a_mixture_whose_weights_do_not_fit_is_refused(change, message, tmp_path):
    save_dense(tmp_path / "dense", "llama")
    upcycle(tmp_path / "dense", tmp_path / "moe")
    path = tmp_path / "moe" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    (tmp_path / "moe" / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(tmp_path / "moe")


def test_no_weight_is_read(tmp_path, monkeypatch):
    save_dense(tmp_path / "dense", "santacoder")
    upcycle(tmp_path / "dense", tmp_path / "moe")

    def refuse(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("moe_codegen.checkpoint.CheckpointReader.__getitem__", refuse)
    assert json.dumps(inspect_checkpoint(tmp_path / "dense").dtypes)
    assert json.dumps(inspect_checkpoint(tmp_path / "moe").dtypes)
