"""Hub ids through the real `huggingface_hub`, against a server on this machine: what is read, when, and how much."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from moe_codegen import upcycle
from moe_codegen.checkpoint import StagedFolder, resolve_source
from moe_codegen.cli.inspect import as_record, inspect
from moe_codegen.errors import CheckpointError, MismatchError, OutputError
from moe_codegen.upcycle.inspection import inspect_checkpoint
from tests.data.reading import served_hub
from tests.data.reading.served_hub import COMMIT, served
from tests.tiny import save_dense
from tests.upcycle.checkpoints import SEED_OF_ANOTHER_MODEL, Steps, copy_of, dense, hashes_of, tensors_of, tuned

WIDE = {"intermediate_size": 8192}  # so that the weights are far longer than what is read to find their headers


class Hub:
    """`folder/org/NAME` is the model of that id; `sent` is what has been served of it."""

    def __init__(self, folder, sent, offline):
        self.folder, self.sent, self.offline = folder / "org", sent, offline

    @property
    def nbytes(self):
        return sum(nbytes for _, nbytes in self.sent)

    @property
    def weights(self):
        """How often bytes of a weight file were sent, beyond its start."""
        return [path for path, nbytes in self.sent if path.endswith(".safetensors") and nbytes > 100_001]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    sent = []
    (tmp_path / "hub" / "org").mkdir(parents=True)
    with served(tmp_path / "hub", gated="org/gated", sent=sent) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield Hub(tmp_path / "hub", sent, lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True))


def single(folder):
    copy_of(dense("llama", **WIDE), folder)


def sharded(folder):
    save_dense(folder, "llama", **WIDE).save_pretrained(folder, max_shard_size="4MB")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("save", [single, sharded])
def test_inspect_and_a_dry_run_read_the_headers_and_no_weights(save, hub, tmp_path, capsys):
    save(hub.folder / "model")
    here = inspect_checkpoint(hub.folder / "model")
    dry = upcycle("org/model@main", tmp_path / "moe", num_experts=4, dry_run=True)
    assert hub.nbytes < here.nbytes / 20
    hub.sent.clear()
    capsys.readouterr()
    inspect(["org/model"], as_json=True)
    assert hub.nbytes < here.nbytes / 20
    assert not hub.weights
    inspected = json.loads(capsys.readouterr().out)
    assert inspected == {**as_record(here), "path": inspected["path"]}
    assert Path(inspected["path"]).name == COMMIT
    from_folder = upcycle(hub.folder / "model", tmp_path / "moe", num_experts=4, dry_run=True)
    assert list(dry.plan.records()) == list(from_folder.plan.records())


def test_a_mixture_at_the_hub_is_inspected_by_its_headers(hub):
    upcycle(dense("llama", **WIDE), hub.folder / "moe", num_experts=2)
    found = inspect_checkpoint(resolve_source("org/moe", weights=False))
    assert found.mixture is not None
    assert found.provenance["source"]["given"] == str(dense("llama", **WIDE))
    assert hub.nbytes < found.nbytes / 20


@pytest.mark.parametrize("save", [single, sharded])
def test_a_hub_id_is_converted_to_the_bytes_its_folder_gives_downloaded_once_at_the_commit_of_the_plan(
    save, hub, tmp_path
):
    save(hub.folder / "model")
    upcycle("org/model", tmp_path / "from-hub", num_experts=2)
    upcycle(hub.folder / "model", tmp_path / "from-folder", num_experts=2)
    ours, theirs = hashes_of(tmp_path / "from-hub"), hashes_of(tmp_path / "from-folder")
    assert {file for file in ours if ours[file] != theirs[file]} == {
        "README.md",
        "upcycle.json",
    }  # they name the source
    source = json.loads((tmp_path / "from-hub" / "upcycle.json").read_text())["source"]
    assert (source["given"], source["commit"]) == ("org/model", COMMIT)
    assert len(hub.weights) == len(set(hub.weights)) == len(list((hub.folder / "model").glob("*.safetensors")))
    assert all(f"/resolve/{COMMIT}/" in path for path in hub.weights)


def test_a_branch_that_moves_between_the_plan_and_the_download_changes_nothing(hub, tmp_path, monkeypatch):
    def move_and_check(*arguments):
        monkeypatch.setattr(served_hub, "COMMIT", "f" * 40)
        check_space(*arguments)

    single(hub.folder / "model")
    check_space = StagedFolder.check_space
    monkeypatch.setattr(StagedFolder, "check_space", move_and_check)
    assert upcycle("org/model", tmp_path / "moe").files
    assert [path for path in hub.weights if f"/resolve/{COMMIT}/" not in path] == []


def other_shapes(folder, out):
    copy_of(dense("llama", **WIDE), folder, hidden_size=64)


def other_family(folder, out):
    copy_of(dense("llama", **WIDE), folder, model_type="mamba")


def quantised(folder, out):
    copy_of(dense("llama", **WIDE), folder, lambda tensors: tensors.update({"model.norm.scales": torch.ones(2)}))


def pickled(folder, out):
    copy_of(dense("llama", **WIDE), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged(folder, out):
    copy_of(dense("llama", **WIDE), folder)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")


def incomplete(folder, out):
    sharded(folder)
    (folder / "model-00003-of-00003.safetensors").unlink()


def out_in_the_way(folder, out):
    single(folder)
    out.with_name("moe.partial").mkdir()
    (out.with_name("moe.partial") / "mine").touch()


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (other_shapes, CheckpointError, "The weights and the configuration belong to different models"),
        (other_family, CheckpointError, "is of model_type 'mamba'; supported families are"),
        (quantised, CheckpointError, "is quantised .*model.norm.scales"),
        (pickled, CheckpointError, r"holds neither model\.safetensors nor .*published as pickles"),
        (incomplete, CheckpointError, r"lacks model-00003-of-00003\.safetensors \(1 of 3 .*index\.json names"),
        (damaged, CheckpointError, r"lacks model\.safetensors, and the hub did not give it: .*safetensors header"),
        (out_in_the_way, OutputError, "is in the way"),
    ],
)
def test_what_shows_in_headers_is_refused_before_the_download(prepare, error, message, hub, tmp_path):
    prepare(hub.folder / "model", tmp_path / "moe")
    with pytest.raises(error, match=message):
        upcycle("org/model", tmp_path / "moe")
    assert not hub.weights


def test_a_disk_too_small_for_the_download_and_the_result_is_refused_before_the_download(hub, tmp_path, monkeypatch):
    single(hub.folder / "model")
    dry = upcycle("org/model", tmp_path / "moe", dry_run=True)
    needed = dry.plan.nbytes + inspect_checkpoint(hub.folder / "model").nbytes
    monkeypatch.setattr("moe_codegen.checkpoint.staging.free_bytes", lambda path: needed - 1)
    with pytest.raises(OutputError, match="GB with the download and its disk has"):
        upcycle("org/model", tmp_path / "moe")
    assert not hub.weights
    monkeypatch.setattr("moe_codegen.checkpoint.staging.free_bytes", lambda path: needed)
    upcycle("org/model", tmp_path / "moe")


def test_experts_from_the_hub_are_checked_for_their_descent_once_they_are_here(hub, tmp_path):
    base = copy_of(dense("llama"), hub.folder / "base")
    tuned(base, hub.folder / "tuned", seed=2)
    save_dense(hub.folder / "stranger", "llama", seed=SEED_OF_ANOTHER_MODEL)
    upcycle(base, tmp_path / "moe", experts={"base": base, "tuned": "org/tuned"})
    upcycle("org/base", tmp_path / "named", experts={"base": "org/base", "tuned": "org/tuned"})
    assert tensors_of(tmp_path / "moe").keys() == tensors_of(tmp_path / "named").keys()
    upcycle(base, tmp_path / "strange", experts=["org/stranger"], top_k=1, dry_run=True)
    with pytest.raises(MismatchError, match="does not descend from the base"):
        upcycle(base, tmp_path / "strange", experts=["org/stranger"], top_k=1)
    with pytest.raises(MismatchError, match="does not descend from the base"):
        upcycle(base, tmp_path / "strange", experts=["org/stranger"], top_k=1, dry_run=True)  # now that it is here


def test_offline_what_is_cached_is_used_and_what_is_not_is_named(hub, tmp_path):
    single(hub.folder / "model")
    single(hub.folder / "other")
    dry = upcycle("org/model", tmp_path / "moe", dry_run=True)
    hub.offline()
    with pytest.raises(CheckpointError, match=rf"{COMMIT} lacks model\.safetensors, and the hub .*offline mode"):
        upcycle("org/model", tmp_path / "moe", dry_run=True)
    with pytest.raises(CheckpointError, match="org/other is not a folder here, and the hub did not give it"):
        upcycle("org/other", tmp_path / "moe", dry_run=True)
    snapshot = resolve_source("org/model", weights=False)
    (snapshot / "model.safetensors").symlink_to(hub.folder / "model" / "model.safetensors")
    assert list(upcycle("org/model", tmp_path / "moe", dry_run=True).plan.records()) == list(dry.plan.records())
    assert upcycle("org/model", tmp_path / "moe").files


def test_a_killed_conversion_of_a_hub_id_goes_on_without_the_hub(hub, tmp_path):
    def kill(step):
        if step.startswith("writing"):
            raise KeyboardInterrupt

    single(hub.folder / "model")
    with pytest.raises(KeyboardInterrupt):
        upcycle("org/model", tmp_path / "moe", max_shard_size="1MB", workers=1, progress=Steps(kill))
    hub.offline()
    steps = Steps()
    upcycle("org/model", tmp_path / "moe", max_shard_size="1MB", workers=1, progress=steps)
    assert len(hub.weights) == 1


def test_a_gated_model_says_what_to_do(hub, tmp_path):
    single(hub.folder / "gated")
    with pytest.raises(
        CheckpointError, match=r"org/gated .*the hub did not give it: [\s\S]*gated repo[\s\S]*`hf auth login`"
    ):
        upcycle("org/gated", tmp_path / "moe", dry_run=True)


def test_adapters_are_told_from_a_model_that_has_some_beside_it(hub, tmp_path):
    for name in ("adapters", "model"):
        single(hub.folder / name)
        (hub.folder / name / "adapter_config.json").write_text("{}")
    (hub.folder / "adapters" / "model.safetensors").rename(hub.folder / "adapters" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds adapters"):
        upcycle("org/adapters", tmp_path / "moe", dry_run=True)
    assert not hub.weights
    assert upcycle("org/model", tmp_path / "moe", dry_run=True).plan
