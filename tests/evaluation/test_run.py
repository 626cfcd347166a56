"""One command for everything: what the halves left is taken up, nothing is done twice, and the report holds it all."""

import shutil
from dataclasses import replace

import pytest

from moe_codegen import upcycle
from moe_codegen.errors import CheckpointError, ConfigError, OutputError
from moe_codegen.evaluation import MeasureSettings, ModelSettings, ProblemSettings, RunSettings, SamplingSettings
from moe_codegen.evaluation.held_out.measures import measure
from moe_codegen.evaluation.run import run
from tests.evaluation.programs import needs
from tests.evaluation.repositories import write_repositories
from tests.evaluation.test_generate import rows
from tests.evaluation.test_problems import write
from tests.tiny import save_dense

CPU = ModelSettings(device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with a dense model, its mixture, a problem, held-out files, and settings for all of it."""
    folder = tmp_path_factory.mktemp("world")
    save_dense(folder / "dense", "gpt_bigcode")
    upcycle(folder / "dense", folder / "moe", num_experts=4)
    write(folder / "humaneval-py.jsonl", *rows("py"))
    write_repositories(folder / "files")
    settings = RunSettings(
        problems=ProblemSettings(languages=("python",), problems=str(folder)),
        sampling=SamplingSettings(num_samples=2, max_tokens=6),
        model=CPU,
        measure=MeasureSettings(languages=("python",), context=32, max_new_tokens=4, window=32),
        held_out=str(folder / "files"),
    )
    return folder, settings


@needs("py")
def test_two_models_are_measured_compared_and_reported_and_again_nothing_is_done(world, tmp_path):
    folder, settings = world
    models = {"dense": folder / "dense", "copies": folder / "moe"}
    # What a half did before is taken up.
    half = measure(folder / "dense", folder / "files", tmp_path / "dense", settings.measure, CPU)
    first = run(models, tmp_path, settings)
    dense, copies = first.models
    assert dense.measures["loss"] == half["loss"]
    assert [set(each.measures) for each in first.models] == [{"loss", "completion"}, {"loss", "completion", "routing"}]
    assert dense.comparisons == {}
    assert copies.comparisons["humaneval py"].problems == 2
    losses = [each.value for each in copies.differences if each.measure == "bits per byte"]
    assert losses == pytest.approx([0] * len(losses), abs=1e-5)
    page = first.report[0].read_text()
    assert "copies against dense" in page
    assert "Routing" in page
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".gz", ".json", ".jsonl")}
    del kept[tmp_path / "dense/run.json"], kept[tmp_path / "copies/run.json"]
    again = run(models, tmp_path, settings)
    assert again.models[1].scores == copies.scores
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@needs("py")
def test_languages_that_the_first_model_alone_has_from_before_are_left_out_of_the_comparison(world, tmp_path):
    folder, settings = world
    settings = replace(settings, held_out=None)
    (dense,) = run({"dense": folder / "dense"}, tmp_path, settings).models
    (python,) = dense.programs.folders
    shutil.copytree(python, python.with_name(python.name.replace("-py-", "-lua-")))
    both = run({"dense": folder / "dense", "copies": folder / "moe"}, tmp_path, settings)
    assert both.models[1].comparisons.keys() == {"humaneval py"}
    assert "not measured" in both.report[0].read_text()


@needs("py")
def test_a_rival_that_cannot_be_used_is_noticed_before_the_first_begins(world, tmp_path):
    folder, settings = world
    with pytest.raises(CheckpointError):
        run({"dense": folder / "dense", "rival": folder / "nowhere"}, tmp_path / "out", settings)
    shutil.copytree(folder / "dense", tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match="no tokenizer"):
        run({"dense": folder / "dense", "rival": tmp_path / "mute"}, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@needs("py")
def test_another_models_folder_is_left_alone(world, tmp_path):
    folder, settings = world
    run({"one": folder / "dense"}, tmp_path, settings)
    with pytest.raises(OutputError, match="other model files"):
        run({"one": folder / "moe"}, tmp_path, settings)


@needs("py")
def test_a_folder_of_something_else_is_left_alone(world, tmp_path):
    folder, settings = world
    shutil.copytree(folder / "moe", tmp_path / "moe")
    with pytest.raises(OutputError, match="something else than an evaluation"):
        run({"one": folder / "dense"}, tmp_path / "moe", settings)
    with pytest.raises(OutputError, match=r"config\.json is no folder that you may write to"):
        run({"one": folder / "dense"}, tmp_path / "moe" / "config.json", settings)
    assert {path.name for path in (tmp_path / "moe").iterdir()} == {path.name for path in (folder / "moe").iterdir()}


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere"])
def test_a_name_is_that_of_a_folder_in_out(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be a model's name"):
        run({name: tmp_path / "model"}, tmp_path / "out")
