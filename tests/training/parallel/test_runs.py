"""`train` by several processes: killed and taken up by another number of them, it ends where one process would."""

import dataclasses
import time

import pytest
import torch
from safetensors.torch import load_file

from moe_codegen import MoEForCausalLM, upcycle
from moe_codegen.training import MixSettings, train
from moe_codegen.training.history import read_history
from tests.training.parallel import processes
from tests.training.parallel.interrupted import train_heard, train_slowly, train_until, train_whole
from tests.training.runs import LANGUAGES, LENGTH

STEPS, SIZE = 12, 8


def losses(folder):
    return {line["step"]: line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line}


@pytest.fixture(scope="module")
def settings(corpus, base, tmp_path_factory):
    moe = tmp_path_factory.mktemp("moe") / "out"
    upcycle(base, moe, num_experts=4, top_k=2, noise_std=0.1)
    return MixSettings(
        model=str(moe),
        train=(corpus.mixed,),
        validation=corpus.validation,
        validation_tokens=500,
        tokens=STEPS * SIZE * LENGTH,
        batch_size=SIZE,
        micro_batch_size=2,
        learning_rate=1e-3,
        log_every=1,
        checkpoint_every=2,
        evaluate_every=4,  # some checkpoints are written right after a validation
        router_learning_rate=3e-3,
        gradient_checkpointing=True,
    )


def test_bf16_on_two_that_share_the_experts_is_near_float32_on_one(settings, tmp_path):
    brief = dataclasses.replace(settings, tokens=3 * SIZE * LENGTH, validation="", evaluate_every=None)
    train(brief, tmp_path / "alone")
    processes.run(2, train_whole, dataclasses.replace(brief, precision="bf16", ep_size=2), tmp_path / "shared")
    alone, shared = losses(tmp_path / "alone"), losses(tmp_path / "shared")
    assert shared == pytest.approx(alone, rel=5e-3)
    assert shared != pytest.approx(alone, rel=1e-6)


def test_no_process_searches_for_parameters_without_gradients_and_none_has_any(settings, corpus, base, tmp_path):
    experts = dict.fromkeys(LANGUAGES, base)
    upcycle(base, tmp_path / "moe", experts=experts, shared_expert=True, noise_std=0.1)
    brief = dict(model=str(tmp_path / "moe"), tokens=3 * SIZE * LENGTH, validation="", evaluate_every=None)
    told = dataclasses.replace(settings, **brief, language_routing="prior", gradient_checkpointing=False)
    for said in processes.run(2, train_heard, told, tmp_path / "shared"):
        assert not [line for line in said if "find_unused_parameters" in line]
    train(told, tmp_path / "alone")
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)


def test_a_run_killed_on_four_goes_on_on_one_and_ends_on_two_as_on_one(settings, tmp_path):
    alone = train(settings, tmp_path / "alone")
    out = tmp_path / "shared"
    (tmp_path / "four").mkdir()
    sharded = dataclasses.replace(settings, fsdp_size=4, ep_size=2)
    four = processes.start(4, tmp_path / "four", train_slowly, sharded, out)
    deadline = time.monotonic() + 120
    while len(losses(out)) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in four:
        process.kill()
        process.join()
    assert 5 <= len(losses(out)) < STEPS
    for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
        assert (checkpoint / "state" / ".metadata").exists()
    assert not (out / "config.json").exists()

    train_until(settings, out, step=9)
    summary = processes.run(2, train_whole, dataclasses.replace(settings, ep_size=2), out)[0]

    assert losses(out) == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    assert summary["validation"]["all"]["value"] == pytest.approx(alone["validation"]["all"]["value"], abs=1e-5)
    expected, actual = (load_file(folder / "model.safetensors") for folder in (tmp_path / "alone", out))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-4)
    assert MoEForCausalLM.from_pretrained(out).config.num_experts == 4
