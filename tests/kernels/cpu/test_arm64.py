"""The compiled kernels on the other kind of processor they are built for, run in an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def test_arm64_products_are_right_in_every_dtype_and_layout_on_any_number_of_threads(build_cpu, tmp_path):
    if missing := [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]:
        pytest.skip(f"no {' and '.join(missing)}; apt-get install gcc-aarch64-linux-gnu qemu-user")
    program = tmp_path / "products"
    sources = [*build_cpu.SOURCES, Path(__file__).with_name("arm64.c")]
    flags = [*build_cpu.FLAGS, "-static", "-march=armv8-a", f"-I{build_cpu.FOLDER}"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-lm", "-o", str(program)], check=True)
    printed = subprocess.run([EMULATOR, str(program)], check=True, capture_output=True, text=True).stdout
    errors = {
        (kind, layout, integers): float(error) for kind, layout, integers, error in map(str.split, printed.splitlines())
    }
    assert len(errors) == 15  # 3 dtypes in 3 layouts, 8 and 4 bits in 2 layouts and in integers
    for (*_, integers), error in errors.items():
        assert error < (1e-4 if integers == "1" else 1e-6), errors
