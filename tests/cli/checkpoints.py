"""Tiny checkpoints that the verbs' tests share, and the command line as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from moe_codegen import upcycle
from moe_codegen.cli import app
from tests.tiny import save_dense


def save_named_mixture(folder: Path) -> Path:
    """A mixture of two named experts over a tiny Phi, split in two, on layers 0 and 2."""
    base, tuned, moe = (folder / name for name in ("base", "tuned", "named"))
    save_dense(base, "phi")
    save_dense(tuned, "phi")
    tensors = load_file(tuned / "model.safetensors")
    changed = {name: tensor * 1.1 if ".mlp." in name else tensor for name, tensor in tensors.items()}
    save_file(changed, tuned / "model.safetensors", {"format": "pt"})
    upcycle(base, moe, experts={"python": base, "java": tuned}, granularity=2, layers="0,2", dtype="bfloat16")
    return moe


def run(*arguments: object, input: str | bytes | None = None, columns: int = 120) -> Result:
    """The command line in this process, as if piped; the error of a verb is the result's `exception`."""
    return CliRunner().invoke(app, [str(each) for each in arguments], input=input, env={"COLUMNS": str(columns)})


def run_process(*arguments: object, input: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-c", "from moe_codegen.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, input=input, capture_output=True, text=True, env=os.environ, check=False)
