"""A tool that never imports this library loads a mixture when it trusts the code beside it."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_beside_a_configuration_has_the_classes_it_names(family, tmp_path):
    config = mixture(family).config
    config.save_pretrained(tmp_path)
    found: dict = {}
    exec((tmp_path / f"{MODULE}.py").read_text(), found)
    assert {place.partition(".")[2] for place in config.auto_map.values()} <= found.keys()
