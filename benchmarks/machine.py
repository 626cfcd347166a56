"""What a measurement ran on: a figure without its machine, versions and commit cannot be reproduced."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from moe_codegen_kernels.cpu.compiled import capability


def describe_machine() -> dict[str, str]:
    """Processor and its instructions, accelerator, library versions and commit, as one flat record."""
    record = {
        "cpu": f"{_cpu_name()}, {capability()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers", "triton"):
        try:
            record[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            record[package] = "absent"
    record["commit"] = _commit()
    return record


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        dirty = subprocess.check_output([*git, "status", "--porcelain"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" (modified)" if dirty else "")
