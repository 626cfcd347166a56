"""Compiling the CPU kernel on installation, and doing without."""

import torch

from moe_codegen_kernels.cpu import compiled


def test_without_a_compiler_nothing_is_built_and_nothing_fails(build_cpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build_cpu.compile_kernels(tmp_path) == []


def test_a_compiler_that_fails_leaves_nothing_behind(build_cpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CC", "false")
    assert build_cpu.compile_kernels(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert "was not built" in capsys.readouterr().out


def test_every_build_is_one_that_can_be_chosen(build_cpu):
    assert {build for builds in build_cpu.BUILDS.values() for build in builds} == set(compiled.BUILDS.values())


def test_an_unknown_processor_runs_through_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "Z VECTOR")
    compiled.load.cache_clear()
    try:
        assert compiled.load("grouped_gemm") == "no build for Z VECTOR"
    finally:
        compiled.load.cache_clear()
