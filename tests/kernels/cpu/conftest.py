"""The two ways of the CPU kernels: compiled here for this processor, and through torch alone."""

import importlib.util
from pathlib import Path

import pytest
import torch

from moe_codegen_kernels.cpu import compiled

BUILD_SCRIPT = Path(__file__).parents[3] / "kernels" / "build_cpu.py"


@pytest.fixture(scope="session")
def build_cpu():
    """The script that hatchling runs on installation, as a module."""
    specification = importlib.util.spec_from_file_location("build_cpu", BUILD_SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def compiled_folder(build_cpu, tmp_path_factory):
    build = compiled.BUILDS.get(torch.backends.cpu.get_cpu_capability())
    folder = tmp_path_factory.mktemp("compiled")
    if build is None or not build_cpu.compile_kernels(folder, (build,)):
        pytest.skip("no C compiler for this processor's kernel")
    return folder


@pytest.fixture(params=["compiled", "torch"])
def cpu_path(request, monkeypatch, tmp_path):
    """Run the test on each way; its name."""
    folder = request.getfixturevalue("compiled_folder") if request.param == "compiled" else tmp_path
    monkeypatch.setattr(compiled, "FOLDER", folder)
    caches = (compiled.load, compiled._library, compiled.panel_width, compiled._quantised)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()
