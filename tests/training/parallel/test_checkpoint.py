"""A checkpoint of any number of processes goes on in any other, and becomes one folder, to the bit."""

from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moe_codegen import MoEForCausalLM
from moe_codegen.errors import CheckpointError, OutputError
from moe_codegen.training.parallel import ShardedTrainer
from moe_codegen.training.parallel.checkpoint import (
    has_sharded_weights,
    load_optimizer,
    load_weights,
    merge_checkpoint,
    save_state,
    whole_weights,
)
from moe_codegen.training.parallel.mesh import ProcessLayout
from tests import tiny
from tests.training.parallel import processes
from tests.training.parallel.runs import model_of, optimizer_of, train, wrapped

FAMILY = "gpt_bigcode"  # its embeddings are tied
ALONE = ProcessLayout()
ONE_WAY = [
    ProcessLayout(4, fsdp_size=4, ep_size=2),
    ProcessLayout(2, ep_size=2),
    ALONE,
    ProcessLayout(4, ep_size=4),
    ProcessLayout(2),
]


def go_on(layout, source, out):
    """Two steps after the checkpoint `source` (or the first two), then a checkpoint; losses and all weights."""
    bare = model_of(FAMILY)
    model = wrapped(bare, layout)
    optimizer = optimizer_of(model)
    first = 0
    if source is not None:
        load_weights(source, bare)
        load_optimizer(source, bare, optimizer)
        first = int(source.name)
    losses = train(model, optimizer, range(first, first + 2))
    save_state(out, bare, optimizer, with_weights=layout.is_sharded)
    whole = whole_weights(bare)
    if not layout.is_sharded:
        bare.save_pretrained(out)
    bare.config.save_pretrained(out)
    return losses, whole


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    """Folder, layout, losses and weights of each checkpoint, every one written by another number of processes."""
    folder, source, legs = tmp_path_factory.mktemp("relay"), None, []
    for leg, layout in enumerate(ONE_WAY):
        out = folder / str(2 * leg + 2)
        run = go_on if layout == ALONE else lambda *args: processes.run(args[0].world_size, go_on, *args)[0]
        legs.append((out, layout, *run(layout, source, out)))
        source = out
    return legs


def test_the_losses_go_on_whoever_goes_on(relay):
    model = model_of(FAMILY)
    undisturbed = train(model, optimizer_of(model), range(2 * len(ONE_WAY)))
    losses = [loss for _, _, losses, _ in relay for loss in losses]
    assert losses == pytest.approx(undisturbed, abs=1e-5)


def test_a_sharded_checkpoint_becomes_the_folder_that_an_unsharded_model_would_write(relay, tmp_path):
    for out, layout, _, whole in relay:
        assert has_sharded_weights(out) == layout.is_sharded
        if layout.is_sharded:
            merged = tmp_path / out.name
            merge_checkpoint(out, merged)
            assert not merged.with_name(f"{merged.name}.partial").exists()
            unsharded = model_of(FAMILY)
            unsharded.load_state_dict(whole, strict=False)
            unsharded.save_pretrained(tmp_path / f"unsharded-{out.name}")
            expected = tmp_path / f"unsharded-{out.name}" / "model.safetensors"
            assert (merged / "model.safetensors").read_bytes() == expected.read_bytes()
            state = MoEForCausalLM.from_pretrained(merged).state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
        else:
            stored = load_file(out / "model.safetensors")
            assert stored.keys() == whole.keys()
            assert all(torch.equal(stored[name], tensor) for name, tensor in whole.items())


def save_sharded(checkpoint):
    """Write what a run whose processes share the model does."""
    model, tokenizer = model_of(FAMILY), tiny.tokenizer()
    model.generation_config.max_new_tokens, tokenizer.chat_template = 7, "{{ messages }}"
    sharded = Mock(layout=ProcessLayout(2, fsdp_size=2), model=model, processing_class=tokenizer)
    ShardedTrainer.save_model(sharded, str(checkpoint))
    save_state(checkpoint, model, optimizer_of(model), with_weights=True)


def test_a_model_that_cannot_be_merged_for_want_of_space_leaves_nothing(tmp_path, monkeypatch):
    save_sharded(tmp_path / "checkpoint-1")
    full = Exception("No space left on device (os error 28)")  # as tokenizers has it
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", Mock(side_effect=full))
    with pytest.raises(OutputError, match=r"merged cannot be written: No space left.*\. Free some space"):
        merge_checkpoint(tmp_path / "checkpoint-1", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_merged_checkpoint_keeps_what_is_beside_the_weights(tmp_path):
    save_sharded(tmp_path / "checkpoint-1")
    merge_checkpoint(tmp_path / "checkpoint-1", tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "{{ messages }}"
    assert MoEForCausalLM.from_pretrained(tmp_path / "merged").generation_config.max_new_tokens == 7


def test_what_was_not_finished_is_not_loaded(relay, tmp_path):
    model = model_of(FAMILY)
    (tmp_path / "state").mkdir()
    for file in (relay[0][0] / "state").glob("*.distcp"):  # all but what is written last
        (tmp_path / "state" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="never finished"):
        load_optimizer(tmp_path, model, optimizer_of(model))
    with pytest.raises(CheckpointError):
        load_weights(tmp_path, model)


def test_another_models_checkpoint_is_refused(relay):
    for out, _, _, _ in (relay[0], relay[2]):  # sharded, and not
        with pytest.raises(CheckpointError, match=out.name):
            load_weights(out, model_of("phi"))


def test_what_is_not_there_or_whole_is_not_merged(relay, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        merge_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CheckpointError, match="loaded as it is"):
        merge_checkpoint(relay[2][0], tmp_path / "out")


def test_merging_overwrites_nothing(relay, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        merge_checkpoint(relay[0][0], tmp_path)


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    model = model_of(FAMILY)
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OutputError, match="no space left"):
        save_state(tmp_path, model, optimizer_of(model), with_weights=True)
    assert not (tmp_path / "state" / ".metadata").exists()
