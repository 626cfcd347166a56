"""The ways of the CPU kernels: compiled here for each processor this one can stand in for, and through torch alone."""

import importlib.util
from pathlib import Path

import pytest

from moe_codegen_kernels.cpu import compiled

BUILD_SCRIPT = Path(__file__).parents[3] / "kernels" / "build_cpu.py"


@pytest.fixture(scope="session")
def build_cpu():
    """The script that hatchling runs on installation, as a module."""
    specification = importlib.util.spec_from_file_location("build_cpu", BUILD_SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# This processor's build, and those of lesser ones, which it runs as well.
LESSER = {"AVX512_BF16": ("AVX512", "AVX2"), "AVX512": ("AVX2",)}
CAPABILITIES = [compiled.capability(), *LESSER.get(compiled.capability(), ())]


@pytest.fixture(scope="session")
def compiled_folder(build_cpu, tmp_path_factory):
    builds = tuple(compiled.BUILDS[capability] for capability in CAPABILITIES if capability in compiled.BUILDS)
    folder = tmp_path_factory.mktemp("compiled")
    if not builds or not build_cpu.compile_kernels(folder, builds):
        pytest.skip("no C compiler for this processor's kernel")
    return folder


@pytest.fixture(params=[*CAPABILITIES, "torch"])
def cpu_path(request, monkeypatch, tmp_path):
    """Run the test on each way: compiled for a processor, and through torch alone; its name."""
    folder = tmp_path if request.param == "torch" else request.getfixturevalue("compiled_folder")
    monkeypatch.setattr(compiled, "FOLDER", folder)
    if request.param != "torch":
        monkeypatch.setattr(compiled, "capability", lambda: request.param)
    caches = (compiled.load, compiled.panel_width, compiled.multiplies_pairs)
    for cache in caches:
        cache.cache_clear()
    yield request.param
    for cache in caches:
        cache.cache_clear()
