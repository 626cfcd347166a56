"""Without an extra its verbs say what to install, and the other verbs are there."""

import subprocess
import sys

VERBS = ("data", "train", "evaluate")
WITHOUT_PYARROW = f"""
import sys
from contextlib import suppress

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")

sys.meta_path.insert(0, Missing())
from moe_codegen.cli import main

for verb in (*{VERBS}, "inspect"):
    sys.argv = ["moe-codegen", verb, "nothing-here"]
    with suppress(SystemExit):
        main()
"""


def test_without_an_extra_its_verbs_say_what_to_install_and_the_others_work():
    said = subprocess.run([sys.executable, "-c", WITHOUT_PYARROW], capture_output=True, text=True).stderr.splitlines()
    errors = [line for line in said if line.startswith("error:")]
    for verb, error in zip(VERBS, errors, strict=False):
        assert f"pip install 'moe-codegen[{verb}]'" in error
    assert len(errors) == len(VERBS) + 1
    assert "nothing-here" in errors[-1]
