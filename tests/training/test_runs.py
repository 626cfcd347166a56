"""The three verbs, each from settings to a checkpoint, on tiny models."""

import dataclasses
import json
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import xxhash
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_codegen import MoEForCausalLM, upcycle
from moe_codegen.data import read_manifest
from moe_codegen.errors import ConfigError
from moe_codegen.training import DenseSettings, ExpertSettings, MixSettings, read_run, train, trainer
from moe_codegen.training.data import validation_documents
from moe_codegen.training.history import read_history
from tests.training.runs import LANGUAGES, LENGTH, from_scratch, save_random, source_text

STEP = 8 * LENGTH  # tokens
QUICK = dict(batch_size=8, micro_batch_size=4, learning_rate=3e-3, log_every=2, validation_tokens=1000)


def parameters(folder, model_class=AutoModelForCausalLM):
    return {name: value.detach() for name, value in model_class.from_pretrained(folder).named_parameters()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def mixture(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixture") / "moe"
    upcycle(base, out, num_experts=3, top_k=2, noise_std=0.01)
    return str(out)


def mix_settings(mixture, corpus, **fields):
    return MixSettings(
        **{
            **dict(model=mixture, train=(corpus.mixed,), validation=corpus.validation, tokens=6 * STEP),
            **QUICK,
            **fields,
        }
    )


def test_a_model_from_scratch_learns_and_leaves_its_story(corpus, tmp_path, monkeypatch):
    measure = Mock(wraps=trainer.document_losses)
    monkeypatch.setattr(trainer, "document_losses", measure)
    settings = from_scratch(corpus, tokens=20 * STEP, evaluate_every=10, log_every=3, checkpoint_every=9)
    began = time.perf_counter()
    summary = train(settings, tmp_path / "out")
    took = time.perf_counter() - began
    lines = read_history(tmp_path / "out" / "history.jsonl")
    logged = [line for line in lines if "loss" in line]
    assert all("loss" in line or "eval_loss_all" in line for line in lines)
    assert logged[-1]["loss"] < logged[0]["loss"] - 1
    assert [line["step"] for line in logged] == [1, 3, 6, 9, 12, 15, 18, 20]
    assert sum(line["tokens_per_second"] * line["seconds"] for line in logged) == pytest.approx(20 * STEP)
    assert 0 < summary["seconds"] < took
    validated = [line for line in lines if "eval_loss_all" in line]
    assert [line["step"] for line in validated] == [10, 20]
    assert measure.call_count == 2  # the last validation is the final one
    assert validated[-1]["eval_loss_java"] == pytest.approx(summary["validation"]["java"]["value"])
    assert set(summary["validation"]) == {*LANGUAGES, "all"}
    assert summary["validation"]["all"]["clusters"] == 12
    assert (summary["steps"], summary["tokens"]) == (20, 20 * STEP)
    assert summary["data_tokens_by_language"] == read_manifest(corpus.mixed)["tokens_by_language"]
    assert read_run(DenseSettings, tmp_path / "out" / "run.toml") == settings
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_the_learning_rate_stays_at_the_peak_and_then_falls_to_zero(corpus, tmp_path):
    schedule = dict(schedule="warmup_stable_decay", warmup=0.2, decay=0.4)
    train(from_scratch(corpus, tokens=10 * STEP, log_every=1, validation="", **schedule), tmp_path / "out")
    lines = read_history(tmp_path / "out" / "history.jsonl")
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    # The rate that a step was made with: two steps up, to the fourth from the end at the peak, four down.
    assert [rate / max(rates) for rate in rates] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_run_may_warm_up_nearly_to_its_end(corpus):
    from_scratch(corpus, warmup=0.95).check()  # `decay` is of another schedule


def test_a_seed_of_the_datas_own_decides_its_order(corpus, base, tmp_path):
    losses = []
    for fields in (dict(seed=0), dict(seed=1, trainer={"data_seed": 0})):
        settings = DenseSettings(model=base, train=(corpus.mixed,), tokens=2 * STEP, **QUICK, **fields)
        train(settings, tmp_path / str(settings.seed))
        lines = read_history(tmp_path / str(settings.seed) / "history.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("tokens", [1, 500, 10**6])
def test_validation_takes_whole_files_in_the_order_of_a_hash_until_there_are_enough(corpus, tokens):
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    expected = []
    for language in LANGUAGES:
        texts = sorted(
            (source_text(language, 1000 + seed) for seed in range(8)),
            key=lambda text: xxhash.xxh64_intdigest(text.encode()),
        )
        sizes = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        enough = next((count for count in range(1, 9) if sum(sizes[:count]) >= tokens), 8)
        expected += [(language, size) for size in sizes[:enough]]
    documents = validation_documents(corpus.validation, tokenizer, tokens)
    assert [(document.language, len(document.ids)) for document in documents] == expected


def test_a_finished_run_is_not_done_again(corpus, base):
    before = (Path(base) / "model.safetensors").stat().st_mtime_ns
    summary = train(from_scratch(corpus, tokens=10 * STEP), base)
    assert summary["steps"] == 10
    assert (Path(base) / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(("parts", "trained"), [("all", ""), ("ffn", ".mlp."), ("lora", "attn mlp lm_head")])
def test_an_expert_learns_its_language_with_the_parts_asked_for(corpus, base, tmp_path, parts, trained):
    settings = ExpertSettings(model=base, train=(corpus.packed["java"],), validation=corpus.validation, parts=parts)
    settings = dataclasses.replace(settings, tokens=12 * STEP, **QUICK)
    summary = train(settings, tmp_path / "out")
    start = json.loads((Path(base) / "summary.json").read_text())["validation"]
    assert summary["validation"]["java"]["value"] < start["java"]["value"] - 0.04
    assert summary["validation"]["java"]["value"] < summary["validation"]["rust"]["value"]
    moved = changed(parameters(base), parameters(tmp_path / "out"))
    assert moved
    if parts == "ffn":
        assert all(".mlp." in name for name in moved)
    if parts == "lora":
        assert all(name.endswith("weight") and ".ln_" not in name and "wpe" not in name for name in moved)


@pytest.mark.parametrize("layout", ["phi-fused", "phi-msft", "santacoder", "llama"])
def test_a_base_in_any_known_layout_is_trained_from_its_weights(corpus, tmp_path, layout):
    stored = save_random(corpus, tmp_path / "base", layout)
    once = dict(QUICK, tokens=STEP, learning_rate=1e-12)
    train(ExpertSettings(model=str(tmp_path / "base"), train=(corpus.packed["java"],), **once), tmp_path / "out")
    trained = parameters(tmp_path / "out")
    for name, value in stored.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", ["router", "shared", "all"])
def test_a_mixture_trains_the_parts_asked_for(corpus, mixture, tmp_path, parts):
    train(mix_settings(mixture, corpus, parts=parts), tmp_path / "out")
    before, after = (parameters(path, MoEForCausalLM) for path in (mixture, tmp_path / "out"))
    moved = changed(before, after)
    kinds = {
        "router": {name for name in before if ".gate." in name},
        "shared": {name for name in before if ".experts." not in name},
        "all": set(before),
    }
    assert moved == kinds[parts]


def test_a_mixtures_history_has_its_losses_and_its_load_by_language(corpus, mixture, tmp_path):
    settings = mix_settings(mixture, corpus, router_aux_loss_coef=0.5, router_z_loss_coef=0.25)
    summary = train(settings, tmp_path / "out")
    lines = [line for line in read_history(tmp_path / "out" / "history.jsonl") if "loss" in line]
    for line in lines:
        total = line["lm_loss"] + 0.5 * line["aux_loss"] + 0.25 * line["z_loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-3)
        assert line["aux_loss"] == pytest.approx(1, abs=0.5)
        assert 0 <= line["load_evenness"] <= 1
    loads = [line["load"] for line in lines]
    assert loads[0]["languages"] == list(LANGUAGES)
    chosen = sum(torch.tensor(load["chosen"]) for load in loads)
    first = sum(torch.tensor(load["first"]) for load in loads)
    assert (chosen.sum(-1) == 2 * first.sum(-1)).all()
    assert (first.sum(-1)[:, 0] == first.sum(-1)[:, 1]).all()
    assert 0.9 * summary["tokens"] < first[:, 0].sum() <= summary["tokens"]
    assert MoEForCausalLM.from_pretrained(tmp_path / "out").config.router_aux_loss_coef == 0.5


def test_a_batch_in_other_micro_batches_gives_the_same_losses(corpus, base, tmp_path):
    losses = {}
    for size in (8, 4, 2):
        settings = DenseSettings(
            model=base, train=(corpus.mixed,), tokens=10 * STEP, **QUICK | {"micro_batch_size": size}
        )
        train(dataclasses.replace(settings, log_every=1), tmp_path / str(size))
        losses[size] = [line["loss"] for line in read_history(tmp_path / str(size) / "history.jsonl") if "loss" in line]
    assert len(losses[8]) == 10
    assert losses[4] == pytest.approx(losses[8], abs=1e-5)
    assert losses[2] == pytest.approx(losses[8], abs=1e-5)


def test_the_router_has_a_learning_rate_of_its_own(corpus, mixture, tmp_path):
    train(mix_settings(mixture, corpus, router_learning_rate=1e-12, weight_decay=0.0), tmp_path / "out")
    before, after = (parameters(path, MoEForCausalLM) for path in (mixture, tmp_path / "out"))
    for name, value in before.items():
        distance = (after[name] - value).abs().max()
        assert distance < 1e-9 if ".gate." in name else distance > 1e-4


def test_the_dense_rival_spends_what_experts_and_mixture_spent(corpus, base, mixture, tmp_path):
    spent = [train(mix_settings(mixture, corpus, tokens=5 * STEP), tmp_path / "mix")]
    expert = ExpertSettings(model=base, train=(corpus.packed["java"],), tokens=4 * STEP, **QUICK)
    spent.append(train(expert, tmp_path / "expert"))
    runs = (str(tmp_path / "mix"), str(tmp_path / "expert"))
    rival = train(DenseSettings(model=base, train=(corpus.mixed,), equal_flops=runs, **QUICK), tmp_path / "dense")
    budget = sum(summary["training_flops"] for summary in spent)
    one_step = rival["training_flops"] / rival["steps"]
    assert abs(rival["training_flops"] - budget) <= one_step / 2
    assert rival["steps"] > 9


def test_a_prior_learns_each_languages_expert_and_an_oracle_is_told(corpus, base, tmp_path):
    experts = dict.fromkeys(LANGUAGES, base)
    upcycle(base, tmp_path / "named", experts=experts, noise_std=0.5, top_k=1, renormalise=False)
    named = str(tmp_path / "named")
    oracle = train(mix_settings(named, corpus, language_routing="oracle"), tmp_path / "oracle")
    for layer in oracle["routing"]["layers"]:
        assert layer["assignment_accuracy"] == 1
        assert layer["normalised_mutual_information"] == pytest.approx(1)
        assert layer["assignment"] == {language: LANGUAGES.index(language) for language in LANGUAGES}
    free = train(mix_settings(named, corpus), tmp_path / "free")
    prior = train(mix_settings(named, corpus, language_routing="prior"), tmp_path / "prior")
    for without, told in zip(free["routing"]["layers"], prior["routing"]["layers"], strict=True):
        assert told["normalised_mutual_information"] > without["normalised_mutual_information"] + 0.1
    learned = [value for name, value in parameters(tmp_path / "prior", MoEForCausalLM).items() if "prior" in name]
    assert len(learned) == 2
    assert not torch.equal(learned[0], torch.eye(3))


def test_languages_that_no_expert_is_named_after_are_refused(corpus, base, tmp_path):
    upcycle(base, tmp_path / "named", experts={"ada": base, "c": base})
    settings = mix_settings(str(tmp_path / "named"), corpus, language_routing="prior")
    with pytest.raises(ConfigError, match=r"names of the experts, ada, c, and the data holds java"):
        train(settings, tmp_path / "out")


@pytest.mark.parametrize("field", ["gradient_checkpointing", "recompute_experts"])
def test_recomputing_changes_nothing_but_memory(corpus, mixture, tmp_path, field):
    losses = []
    for value in (False, True):
        train(mix_settings(mixture, corpus, log_every=1, **{field: value}), tmp_path / str(value))
        lines = read_history(tmp_path / str(value) / "history.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    if field == "recompute_experts":
        assert MoEForCausalLM.from_pretrained(tmp_path / "True").config.recompute_experts


def test_pictures_and_tensorboard_show_losses_load_and_languages(corpus, mixture, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = mix_settings(mixture, corpus, evaluate_every=3, trainer={"report_to": ["tensorboard"]})
    summary = train(settings, tmp_path / "out")
    assert summary["figures"] == ["losses.png", "load.png", "languages.png"]
    for name in summary["figures"]:
        assert (tmp_path / "out" / "figures" / name).read_bytes().startswith(b"\x89PNG")
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    shown = EventAccumulator(str(events)).Reload()
    lines = read_history(tmp_path / "out" / "history.jsonl")
    for tag, name in {"lm_loss": "lm_loss", "load_evenness": "load_evenness", "loss_java": "eval_loss_java"}.items():
        scope = "eval" if name.startswith("eval_") else "train"
        scalars = [(scalar.step, scalar.value) for scalar in shown.Scalars(f"{scope}/{tag}")]
        assert scalars == [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert scalars
