"""Every example runs to its end in a new process, and stays short enough to be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.sh"))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_on_a_tiny_model(example, tmp_path):
    done = subprocess.run([sys.executable, example, "--tiny"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_at_most_80_lines(example):
    assert len(example.read_text().splitlines()) <= 80


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_torchrun_with_its_arguments_on_every_host(script, tmp_path):
    # In place of torchrun, srun and scontrol, programs that print what they were given.
    for program, line in {
        "torchrun": 'echo torchrun "$@"',
        "srun": 'exec "$@"',
        "scontrol": "printf 'first\nsecond\n'",
    }.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / program).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "first,second", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}
    given = ["RUN.toml", "OUT", "--ep-size", "8"]
    arguments = given if "slurm" in script.name else ["first", *given]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **slurm}
    done = subprocess.run(["sh", script, *arguments], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torchrun --nnodes 2 --nproc-per-node 8 ")
    assert "--rdzv-endpoint first:29500" in done.stdout
    assert done.stdout.endswith("--no-python moe-codegen train mix RUN.toml OUT --ep-size 8\n")
