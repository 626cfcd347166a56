"""Without an extra its verbs say what to install, and the other verbs are there."""

import subprocess
import sys

COMMANDS = {"data": "data", "train": "train", "evaluate": "evaluate run nothing-here out"}  # extra -> what needs it
WITHOUT_PYARROW = f"""
import sys
from contextlib import suppress

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

sys.meta_path.insert(0, Missing())
from moe_codegen.cli import main

for command in {[*COMMANDS.values(), "inspect nothing-here"]}:
    sys.argv = ["moe-codegen", *command.split()]
    with suppress(SystemExit):
        main()
"""


def test_without_an_extra_its_verbs_say_what_to_install_and_the_others_work():
    said = subprocess.run([sys.executable, "-c", WITHOUT_PYARROW], capture_output=True, text=True).stderr.splitlines()
    errors = [line for line in said if line.startswith("error:")]
    for extra, error in zip(COMMANDS, errors, strict=False):
        assert f"pip install 'moe-codegen[{extra}]'" in error
    assert len(errors) == len(COMMANDS) + 1
    assert "nothing-here" in errors[-1]
