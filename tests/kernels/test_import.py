"""The package imports neither triton nor transformers, and its CPU path needs neither."""

import subprocess
import sys
import textwrap


def _run(program):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_no_kernels():
    assert _run("""
        import sys, torch
        before = set(sys.modules)
        import moe_codegen_kernels
        added = {name.split(".")[0] for name in set(sys.modules) - before}
        assert added & {"triton", "transformers", "safetensors"} == set(), added
        assert not any(name.startswith("moe_codegen_kernels.gpu.") for name in sys.modules)
        print("ok")
    """).startswith("ok")


def test_without_triton_the_cpu_works_and_cuda_says_what_to_install():
    assert _run("""
        import sys
        sys.modules["triton"] = None  # as if it were not installed
        import torch
        from moe_codegen_kernels import expert_ffn
        from moe_codegen_kernels.gpu_import import gpu_module
        ids_TK, weights_TK = torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
        up, down = torch.randn(2, 8, 4), torch.randn(2, 4, 8)
        expert_ffn(torch.randn(3, 4), ids_TK, weights_TK, up, None, down, None, activation="relu", gated=False)
        try:
            gpu_module("routing")
        except RuntimeError as error:
            print(error)
    """).startswith("the CUDA kernels need triton: pip install")
