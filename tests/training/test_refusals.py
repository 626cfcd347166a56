"""What is refused before any work: each message says what was given and what to do."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from moe_codegen import upcycle
from moe_codegen.checkpoint import load_tokenizer
from moe_codegen.data import PackSettings, TokenizerSettings, make_tokenizer, open_source, pack
from moe_codegen.errors import CheckpointError, ConfigError, SourceError, TokenizerError
from moe_codegen.training import DenseSettings, ExpertSettings, MixSettings, read_run, train
from moe_codegen.training.data import PackedSequences
from moe_codegen.training.runfile import write_run
from moe_codegen.upcycle import quantise
from tests.checkpoint.published import published
from tests.data.inputs import write
from tests.training.runs import from_scratch


def refused(settings, folder, error, message):
    with pytest.raises(error, match=message):
        train(settings, folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(trainer={"label_smoothing_factor": 0.1}), "router losses would be left out"),
        (dict(trainer={"learnin_rate": 0.1}), "did you mean `learning_rate`"),
        (dict(trainer={"optim": "sgdm"}), "transformers refuses these settings: sgdm is not a valid OptimizerNames"),
        (dict(trainer={"num_train_epochs": 3}), "tokens says how long"),
        (dict(trainer={"include_num_input_tokens_seen": True}), "every line of the history has the tokens so far"),
        (dict(trainer={"push_to_hub": True}), "upload that with `hf upload OWNER/NAME OUT"),
        (dict(trainer={"report_to": ["tensorbord"]}), "refuses these settings: tensorbord is not supported"),
        pytest.param(
            dict(precision="fp16"),
            "'fp16' needs a GPU",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one"),
        ),
        (dict(trainer={"max_steps": 3}), "trainer.max_steps is decided by the run file"),
        (dict(batch_size=6, micro_batch_size=4), "no multiple of micro_batch_size=4 times 1 processes"),
        (dict(batch_size=4096, micro_batch_size=8), "do not fill one batch of batch_size=4096"),
        (dict(train=()), "train names no data"),
        (dict(tokens=5, equal_flops=("x",)), "both say how long to train"),
        (dict(equal_flops=("x",)), "x is no finished run"),
        (dict(evaluate_every=5, validation=""), "needs `validation`"),
        (dict(model="x"), "either `model`"),
        (dict(parts="ffn"), "from scratch mostly random"),
        (dict(warmup=100), "a share of the steps"),
        (dict(tokens=0), "tokens=0 should be at least 1"),
        (dict(learning_rate=0.0), r"learning_rate=0.0 should lie between 0 and inf \(both excluded\)"),
        (dict(max_grad_norm=-1.0), "max_grad_norm=-1.0 should lie between 0 and inf"),
        (dict(seed=-1), "seed=-1 should lie between 0 and 4294967295"),
        (dict(schedule="warmup_stable_decay", warmup=0.5, decay=0.6), "with warmup at most 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_hold(corpus, tmp_path, fields, message):
    refused(from_scratch(corpus, **fields), tmp_path, ConfigError, message)


@pytest.mark.parametrize("name", ["router_learning_rate", "router_aux_loss_coef", "router_z_loss_coef"])
def test_a_routers_settings_that_cannot_hold(tmp_path, name):
    refused(MixSettings(model="x", train=("y",), **{name: -1.0}), tmp_path, ConfigError, f"{name}=-1.0 should lie")


def test_a_reporter_that_is_not_installed(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    settings = from_scratch(corpus, trainer={"report_to": ["tensorboard"]})
    refused(settings, tmp_path, ConfigError, "refuses these settings: .*requires tensorboard")


def test_kernels_that_are_not_installed(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    settings = from_scratch(corpus, trainer={"use_liger_kernel": True})
    refused(settings, tmp_path, ConfigError, "refuses these settings: import of liger_kernel")


def test_an_optimiser_that_is_not_installed(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", Mock(side_effect=ImportError("install bitsandbytes")))
    settings = from_scratch(corpus, trainer={"optim": "adamw_8bit"})
    refused(settings, tmp_path, ConfigError, "refuses these settings: install bitsandbytes")


def test_several_gpus_in_one_process(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    refused(from_scratch(corpus), tmp_path, ConfigError, "sees 2 GPUs and can use one: .*torchrun --nproc-per-node 2")


def test_an_expert_of_several_languages(corpus, base, tmp_path):
    settings = ExpertSettings(model=base, train=(corpus.mixed,), batch_size=8)
    refused(settings, tmp_path, ConfigError, "an expert learns one language and the data holds java, python, rust")


def test_a_mixture_where_a_dense_model_is_wanted_and_the_other_way_round(corpus, base, tmp_path):
    refused(MixSettings(model=base, train=(corpus.mixed,)), tmp_path, ConfigError, "not a mixture of this library")
    upcycle(base, tmp_path / "moe", num_experts=2)
    settings = ExpertSettings(model=str(tmp_path / "moe"), train=(corpus.packed["java"],))
    refused(settings, tmp_path, ConfigError, "trained with `moe-codegen train mix`")
    quantise(tmp_path / "moe", tmp_path / "int8")
    settings = MixSettings(model=str(tmp_path / "int8"), train=(corpus.mixed,))
    refused(settings, tmp_path, ConfigError, r"quantised \(int8, .*train the mixture that it was made from")


@pytest.mark.parametrize("name", ["bsae", "./bsae"])
def test_a_model_a_configuration_and_data_that_are_not_there(corpus, tmp_path, name):
    missing = f"{name} is n.* a folder"
    for settings in (
        ExpertSettings(model=name, train=(corpus.packed["java"],)),
        MixSettings(model=name, train=(corpus.mixed,)),
        from_scratch(corpus, config=name),
        from_scratch(corpus, tokenizer=name),
    ):
        refused(settings, tmp_path, CheckpointError, missing)
    refused(from_scratch(corpus, train=(name,)), tmp_path, SourceError, f"{name} holds no packed sequences")
    shutil.copytree(corpus.tokenizer, tmp_path / "empty")
    settings = MixSettings(model=str(tmp_path / "empty"), train=(corpus.mixed,))
    refused(settings, tmp_path, CheckpointError, "config.json is missing")


def test_data_packed_for_another_tokenizer(corpus, base, tmp_path):
    source = open_source(Path(corpus.validation))
    make_tokenizer(source, tmp_path / "other", TokenizerSettings(vocabulary=300))
    pack(source, tmp_path / "packed", PackSettings(str(tmp_path / "other"), 64, fim_rate=0.0))
    settings = DenseSettings(model=base, train=(str(tmp_path / "packed"),))
    refused(settings, tmp_path, TokenizerError, "packed with the tokenizer other, which numbers tokens otherwise")


def test_data_packed_with_the_models_own_tokenizer_are_taken_though_transformers_adds_a_token(corpus, tmp_path):
    folder = str(published("codellama"))
    pack(open_source(Path(corpus.validation)), tmp_path / "packed", PackSettings(folder, 64, fim_rate=0.0))
    assert "<FILL_ME>" in AutoTokenizer.from_pretrained(folder).get_vocab()
    assert len(PackedSequences([str(tmp_path / "packed")], load_tokenizer(Path(folder)))) > 0


def test_a_base_without_tokenizer(corpus, base, tmp_path):
    shutil.copytree(base, tmp_path / "base", ignore=lambda *_: ["checkpoints"])
    for path in (tmp_path / "base").glob("tokenizer*"):
        path.unlink()
    settings = DenseSettings(model=str(tmp_path / "base"), train=(corpus.mixed,))
    refused(settings, tmp_path, TokenizerError, "has no tokenizer")


def test_validation_with_the_training_half_beside_it(corpus, tmp_path):
    for half in ("train", "validation"):
        shutil.copytree(corpus.validation, tmp_path / "divided" / half)
    settings = from_scratch(corpus, validation=str(tmp_path / "divided"))
    refused(settings, tmp_path, ConfigError, "holds training files too; give .*validation")


def test_a_language_without_documents(corpus, tmp_path):
    empty = write(tmp_path / "empty", [{"repo": "a/b", "path": "x", "language": "java", "content": ""}])
    pack(open_source(empty), tmp_path / "packed", PackSettings(corpus.tokenizer, 64, fim_rate=0.0))
    settings = from_scratch(corpus, train=(corpus.mixed, str(tmp_path / "packed")))
    refused(settings, tmp_path, SourceError, "packed is packed from no documents")


def test_sequences_longer_than_the_models_positions(corpus, tmp_path):
    config = json.loads((Path(corpus.config) / "config.json").read_text()) | dict(n_positions=32)
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(from_scratch(corpus, config=str(tmp_path)), tmp_path, ConfigError, "sequences of 64 tokens.*32 positions")


def test_a_run_file_that_is_wrong(corpus, tmp_path):
    run = tmp_path / "run.toml"
    for text, message in (
        ("learning_rat = 1.0", "unknown key `learning_rat` in .*run.toml; did you mean `learning_rate`"),
        ("batch_size = 'many'", "`batch_size` in .* should be of type int"),
        ("precision = 'fp8'", "should be one of float32, bf16, fp16"),
        ("= 3", "cannot be read as TOML"),
        ("model = 'modèle'", "cannot be read as TOML: 'utf-8' codec"),
    ):
        run.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=message):
            read_run(DenseSettings, run)


def test_the_run_file_of_the_examples_is_one():
    example = Path(__file__).parents[2] / "examples" / "mix.toml"
    settings = read_run(MixSettings, example, {"model": "moe"})
    assert settings.trainer == {"report_to": ["tensorboard"]}
    assert settings.parts == "shared"


def test_flags_override_the_run_file_and_its_paths_are_relative_to_it(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "run.toml").write_text('config = "c"\ntokenizer = "t"\ntrain = ["packed"]\nseed = 3\nbatch_size = 4\n')
    settings = read_run(DenseSettings, tmp_path / "run.toml", {"batch_size": 16, "train": ["elsewhere"]})
    assert (settings.seed, settings.batch_size, settings.train) == (3, 16, ("elsewhere",))
    settings = read_run(DenseSettings, tmp_path / "run.toml")
    assert settings.train == (str(tmp_path / "packed"),)
    assert dataclasses.replace(settings, seed=0) != settings


def test_a_flag_of_a_table_leaves_its_other_entries(tmp_path):
    (tmp_path / "run.toml").write_text('model = "m"\ntrain = ["t"]\n[trainer]\nadam_beta1 = 0.8\nadam_beta2 = 0.9\n')
    settings = read_run(MixSettings, tmp_path / "run.toml", {"trainer": {"adam_beta2": 0.99, "optim": "adafactor"}})
    assert settings.trainer == {"adam_beta1": 0.8, "adam_beta2": 0.99, "optim": "adafactor"}


def test_a_run_file_is_read_as_it_was_written_from_wherever_it_lies(tmp_path, monkeypatch):
    (tmp_path / "packed").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = MixSettings(model="owner/name", train=("packed",), max_grad_norm=math.inf, trainer={"adam_beta1": 0.8})
    write_run(settings, tmp_path / "out" / "run.toml")
    monkeypatch.chdir("/")
    written = read_run(MixSettings, tmp_path / "out" / "run.toml")
    assert written == dataclasses.replace(settings, train=(str(tmp_path / "packed"),))
