"""A tool that never imports this library loads a mixture when it trusts the code beside it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import configuration_utils

from moe_codegen import MoEConfig
from moe_codegen.modeling.auto_map import MODULE
from tests.modeling.mixture import mixture
from tests.tiny import FAMILIES

FOREIGN_TOOL = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

folder, again = sys.argv[1:]
assert "moe_codegen" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
assert type(AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)) is type(model)
assert type(AutoModel.from_pretrained(again, trust_remote_code=True)) is type(model.base_model)
print(type(model).__name__)
"""


def test_a_tool_that_does_not_know_us_loads_saves_and_loads(tmp_path):
    mixture("phi").save_pretrained(tmp_path / "saved")
    command = [sys.executable, "-c", FOREIGN_TOOL, tmp_path / "saved", tmp_path / "again"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["MoEPhiForCausalLM"], done.stderr
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == {f"{MODULE}.py"}


def test_what_is_pushed_to_the_hub_has_the_file_too(tmp_path, monkeypatch):
    repository = SimpleNamespace(repo_id="someone/model")
    create = SimpleNamespace(create_repo=lambda *args, **kwargs: repository)
    monkeypatch.setattr(configuration_utils, "hf_api", lambda: create, raising=False)
    monkeypatch.setattr(configuration_utils, "create_repo", create.create_repo, raising=False)
    uploaded = set()

    def upload(self, folder, repo_id, timestamps, **kwargs):
        uploaded.update(path.name for path in tmp_path.iterdir() if path.name not in timestamps)

    monkeypatch.setattr(MoEConfig, "_upload_modified_files", upload)
    mixture("phi").config.save_pretrained(str(tmp_path), push_to_hub=True)
    assert uploaded == {"config.json", f"{MODULE}.py"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_beside_a_configuration_has_the_classes_it_names(family, tmp_path):
    config = mixture(family).config
    config.save_pretrained(tmp_path)
    found: dict = {}
    exec((tmp_path / f"{MODULE}.py").read_text(), found)
    assert {place.partition(".")[2] for place in config.auto_map.values()} <= found.keys()
