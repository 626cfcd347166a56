"""Runs that are stopped: by a kill, by a loss that is not finite, by a full disk; and that go on."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from moe_codegen import upcycle
from moe_codegen.errors import NonFiniteError, OutputError, ResumeError
from moe_codegen.training import ExpertSettings, MixSettings, train
from moe_codegen.training.history import read_history
from moe_codegen.training.runfile import write_run
from tests.data.inputs import write
from tests.training.parallel.interrupted import train_until
from tests.training.runs import LENGTH, from_scratch, save_random

STEP = 8 * LENGTH
SLOWLY = """
import sys, time
from transformers import TrainerCallback
from moe_codegen.training import DenseSettings, read_run, train

class Slow(TrainerCallback):
    def on_step_end(self, *given, **kwargs):
        time.sleep(0.2)

train(read_run(DenseSettings, sys.argv[1]), sys.argv[2], callbacks=[Slow()])
"""


def losses(folder):
    return {line["step"]: line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(corpus, tmp_path):
    # Dropout, so that random numbers have to go on as well; more than one pass over the data.
    config = json.loads((Path(corpus.config) / "config.json").read_text()) | dict(resid_pdrop=0.1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Lines that are means over steps on both sides of a checkpoint would differ.
    often = dict(checkpoint_every=4, log_every=3)
    settings = from_scratch(corpus, config=str(tmp_path), train=(corpus.packed["java"],), tokens=30 * STEP, **often)
    train(settings, tmp_path / "undisturbed")
    write_run(settings, tmp_path / "run.toml")
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, tmp_path / "run.toml", tmp_path / "killed"])
    deadline = time.monotonic() + 120
    while len(losses(tmp_path / "killed")) < 10 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    at_the_kill = losses(tmp_path / "killed")
    assert 10 <= len(at_the_kill) < 30
    resumed = train(settings, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")
    assert resumed["steps"] == 30
    assert resumed["passes"] > 1


@pytest.mark.parametrize("parts", ["ffn", "lora", "router"])
def test_a_stopped_run_of_some_parts_goes_on(corpus, tmp_path, parts):
    # Llama's layers have no biases, so that all that is trained has weight decay, or none of it has.
    save_random(corpus, tmp_path / "base", "llama")
    common = dict(train=(corpus.packed["java"],), tokens=4 * STEP, batch_size=8, log_every=1, checkpoint_every=2)
    if parts == "router":
        upcycle(tmp_path / "base", tmp_path / "moe", num_experts=2)
        rates = dict(router_learning_rate=1e-3)
        settings = MixSettings(model=str(tmp_path / "moe"), parts=parts, **common, **rates)
    else:
        settings = ExpertSettings(model=str(tmp_path / "base"), parts=parts, **common)
    train(settings, tmp_path / "undisturbed")
    train_until(settings, tmp_path / "stopped", step=4)
    train(settings, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "undisturbed")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")


class Spoil(TrainerCallback):
    """Makes a weight NaN before one step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                next(model.parameters())[0, 0] = torch.nan


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(corpus, tmp_path):
    settings = from_scratch(corpus, tokens=20 * STEP, checkpoint_every=3, log_every=10)
    with pytest.raises(NonFiniteError, match=r"loss of step 5 is not finite.*checkpoint is .*checkpoint-3"):
        train(settings, tmp_path / "out", callbacks=[Spoil(5)])
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert not (tmp_path / "out" / "config.json").exists()
    assert train(settings, tmp_path / "out")["steps"] == 20  # without what spoilt it


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_was(corpus, tmp_path):
    class SpoilAfter(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 6:
                with torch.no_grad():
                    next(model.parameters())[0, 0] = torch.inf

    settings = from_scratch(corpus, tokens=20 * STEP, checkpoint_every=3)
    with pytest.raises(NonFiniteError, match="step 6"):
        train(settings, tmp_path / "out", callbacks=[SpoilAfter()])
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["checkpoint-3"]


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(corpus, tmp_path, monkeypatch):
    settings = from_scratch(corpus, tokens=9 * STEP, checkpoint_every=3)
    save, calls = torch.save, []

    def full(value, path, *given, **kwargs):
        calls.append(path)
        if "checkpoint-6" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return save(value, path, *given, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"checkpoint-6 cannot be written.*No space left.*good checkpoint is .*-3"):
        train(settings, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    train(settings, tmp_path / "out")
    assert sorted(losses(tmp_path / "out")) == list(range(1, 10))


@pytest.mark.parametrize("folder", ["checkpoint-3", ".partial"])
def test_a_disk_that_is_full_when_the_tokenizer_is_written_is_said_to_be(corpus, tmp_path, monkeypatch, folder):
    save = PreTrainedTokenizerBase.save_pretrained

    def full(tokenizer, path, *given, **kwargs):
        if Path(path).name == folder:
            raise Exception("No space left on device (os error 28)")  # tokenizers has no error of its own
        return save(tokenizer, path, *given, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OutputError, match=r"cannot be written: No space left.*run the same command again"):
        train(from_scratch(corpus, tokens=3 * STEP, checkpoint_every=3), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.fixture
def disk(tmp_path):
    """A file system of 1.6 MB, room for one checkpoint, where this machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


class Fill(TrainerCallback):
    """Another program that takes all the disk once training ends."""

    def __init__(self, disk):
        self.file = disk / "other"

    def on_train_end(self, *given, **kwargs):
        with contextlib.suppress(OSError), self.file.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))


def test_a_disk_that_really_is_full_stops_a_checkpoint_and_the_model_and_loses_neither(corpus, disk, tmp_path):
    settings = from_scratch(corpus, tokens=9 * STEP, checkpoint_every=3)
    train(settings, tmp_path / "undisturbed")
    out = disk / "out"
    with pytest.raises(OutputError, match=r"checkpoint-6 cannot be written: no space left.*checkpoint is .*-3\. Free"):
        train(settings, out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["checkpoint-3"]
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    fill = Fill(disk)
    with pytest.raises(OutputError, match=r"out cannot be written: .*checkpoint-9; free some space"):
        train(settings, out, callbacks=[fill])
    assert not (out / "config.json").exists()
    fill.file.unlink()
    train(settings, out)
    assert losses(out) == losses(tmp_path / "undisturbed")
    assert weights(out) == weights(tmp_path / "undisturbed")


def test_a_started_run_is_not_continued_with_other_settings(corpus, tmp_path):
    settings = from_scratch(corpus, tokens=6 * STEP, checkpoint_every=2)
    with pytest.raises(NonFiniteError):
        train(settings, tmp_path / "out", callbacks=[Spoil(4)])
    with pytest.raises(ResumeError, match="differs in learning_rate, seed"):
        train(from_scratch(corpus, tokens=6 * STEP, checkpoint_every=2, learning_rate=1.0, seed=1), tmp_path / "out")


def test_a_model_and_data_are_told_by_what_they_hold_and_not_by_where_they_are(corpus, base, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for side, language in ((one, "java"), (other, "rust")):
        shutil.copytree(corpus.packed[language], side / "train")
        shutil.copytree(corpus.validation, side / "validation")
        shutil.copytree(base, side / "model", ignore=lambda *_: ["checkpoints"])
    more = {"repo": "a/b", "path": "x", "language": "java", "content": "int x;"}
    write(other / "validation", [more], name="more.parquet")
    weights = other / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")  # as large as before

    def run(side, **others):
        sides = {**dict.fromkeys(("model", "train", "validation"), side), **others}
        paths = {name: str(folder / name) for name, folder in sides.items()}
        paths["train"] = (paths["train"],)
        return train(ExpertSettings(**paths, tokens=2 * STEP, batch_size=8, validation_tokens=100), tmp_path / "out")

    finished = run(one)
    for name in ("model", "train", "validation"):
        with pytest.raises(ResumeError, match=f"differs in what {name} holds;"):
            run(one, **{name: other})
    one.rename(tmp_path / "moved")
    assert run(tmp_path / "moved") == finished


def test_a_folder_of_something_else_is_left_alone(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="holds no run of ours"):
        train(from_scratch(corpus), tmp_path / "out")
    with pytest.raises(OutputError, match=r"thesis\.tex is no folder that you may write to"):
        train(from_scratch(corpus), tmp_path / "out" / "thesis.tex" / "run")


@pytest.mark.parametrize("name", ["started.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"verb": "dense"}', '{"verb": "dense", "settings": 5}'])
def test_a_record_of_something_else_is_named(name, content, corpus, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=rf"{name} is damaged or not of a run of ours .*; give another folder"):
        train(from_scratch(corpus), tmp_path)


def test_only_so_many_checkpoints_stay(corpus, tmp_path):
    train(from_scratch(corpus, tokens=12 * STEP, checkpoint_every=2, keep_checkpoints=3), tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["checkpoint-10", "checkpoint-12", "checkpoint-8"]
