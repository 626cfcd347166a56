"""`measure` writes each measure once, whole, about one model; two models' files give differences with intervals."""

import json

import pytest

from moe_codegen import upcycle
from moe_codegen.errors import ConfigError, OutputError, ResultError
from moe_codegen.evaluation.held_out.estimates import differences, estimates, losses_of
from moe_codegen.evaluation.held_out.measures import measure
from moe_codegen.evaluation.run_folder import RunRecord, read_measure
from moe_codegen.evaluation.settings import MeasureSettings, ModelSettings
from moe_codegen.metrics import losses_by_language
from tests.evaluation.repositories import write_repositories
from tests.tiny import save_dense

SETTINGS = MeasureSettings(documents=4, places=2, context=32, max_new_tokens=6, window=32)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Folder of everything: data, a dense model and its mixture, and what was measured of both."""
    folder = tmp_path_factory.mktemp("measured")
    write_repositories(folder / "data")
    save_dense(folder / "dense", "gpt_bigcode")
    upcycle(folder / "dense", folder / "moe", num_experts=4, top_k=2)
    for name in ("dense", "moe"):
        run(folder, name, folder / f"{name}-out")
    return folder


def run(folder, name, out, settings=SETTINGS):
    return measure(folder / name, folder / "data", out, settings, ModelSettings(device="cpu"))


def test_a_mixture_has_every_measure_and_a_dense_model_no_routing(measured):
    assert {path.name for path in (measured / "moe-out").iterdir()} == {
        "loss.json",
        "completion.json",
        "routing.json",
    }
    assert {path.name for path in (measured / "dense-out").iterdir()} == {"loss.json", "completion.json"}
    record = read_measure(measured / "moe-out", "loss")
    assert record["model"]["kind"] == "mixture"
    assert record["model"]["parameters"]["active"] < record["model"]["parameters"]["total"]
    assert record["documents"]["files"] == {"python": 2, "java": 2, "javascript": 1, "cpp": 1}
    assert str(measured) not in json.dumps(record)


def test_copied_experts_lose_what_the_dense_model_loses(measured):
    moe, dense = (read_measure(measured / f"{name}-out", "loss") for name in ("moe", "dense"))
    for difference in differences(moe, dense):
        assert difference.value == pytest.approx(0, abs=1e-5)
    assert {one.measure for one in differences(moe, dense)} == {"loss, nats per token", "bits per byte"}


def test_estimates_are_means_of_what_the_files_hold(measured):
    record = read_measure(measured / "dense-out", "completion")
    found = {(one.measure, one.language): one for one in estimates(record)}
    some = [one for one in record["completions"] if one["task"] == "fill" and one["language"] == "python"]
    mean = sum(one["similarity"] for one in some) / len(some)
    estimate = found["fill in the middle: edit similarity", "python"]
    assert estimate.value == pytest.approx(mean)
    assert (estimate.files, estimate.repositories) == (2, 2)
    assert estimate.text.endswith("(2 repositories: too few for an interval)")
    loss = read_measure(measured / "dense-out", "loss")
    by_language = losses_by_language(losses_of(loss))
    assert [one.value for one in estimates(loss)][: len(by_language)] == [one.value for one in by_language.values()]


def test_given_again_only_what_is_missing_is_made(measured, tmp_path):
    first = run(measured, "moe", tmp_path)
    (tmp_path / "completion.json").unlink()
    kept = (tmp_path / "loss.json").stat().st_mtime_ns
    again = run(measured, "moe", tmp_path)
    assert (tmp_path / "loss.json").stat().st_mtime_ns == kept
    assert again["completion"]["completions"] == first["completion"]["completions"]


def test_results_of_another_model_or_other_settings_are_not_mixed(measured, tmp_path):
    run(measured, "dense", tmp_path)
    with pytest.raises(OutputError, match="other model"):
        run(measured, "moe", tmp_path)
    other = MeasureSettings(documents=4, places=2, context=32, max_new_tokens=6, window=16)
    with pytest.raises(OutputError, match="other settings"):
        run(measured, "dense", tmp_path, other)


def test_a_run_of_another_model_takes_no_measures(measured, tmp_path):
    RunRecord({"name": "other", "files": {"model.safetensors": "0" * 64}}, {}).write(tmp_path)
    with pytest.raises(OutputError, match="other model files"):
        run(measured, "dense", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_models_measured_differently_are_not_compared(measured, tmp_path):
    run(measured, "dense", tmp_path, MeasureSettings(documents=4, places=0, context=32, window=16))
    with pytest.raises(ConfigError, match="other settings"):
        differences(read_measure(tmp_path, "loss"), read_measure(measured / "dense-out", "loss"))


PARTS = {"model": {"name": "a", "files": {}}, "settings": {}, "documents": {}, "versions": {}, "seconds": 1.5}


@pytest.mark.parametrize("content", ['{"measure": "loss", ', "[]", '{"measure": "loss"}', json.dumps(PARTS)])
def test_a_damaged_file_is_an_error(content, tmp_path):
    (tmp_path / "loss.json").write_text(content)
    with pytest.raises(ResultError, match=r"loss\.json is damaged .*; remove it to have it made again"):
        read_measure(tmp_path, "loss")
    assert read_measure(tmp_path, "routing") is None


@pytest.mark.parametrize("wrong", [{"documents": 0}, {"context": 1}, {"languages": ()}, {"places": -1}])
def test_settings_that_cannot_hold_are_refused(wrong):
    with pytest.raises(ConfigError):
        MeasureSettings(**wrong)
