"""Compiles the CPU kernels: run by hatchling on installation, or by hand with `python kernels/build_cpu.py`.

C files without dependencies, each built once for each set of instructions; the processor chooses at run time. Without a
C compiler the package installs all the same, and its experts run through torch's own products.
"""

import itertools
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, where hatchling need not be
    BuildHookInterface = object  # type: ignore[assignment, misc]

FOLDER = Path(__file__).parent / "moe_codegen_kernels" / "cpu"
SOURCES = (FOLDER / "grouped_gemm.c", FOLDER / "quantised.c", FOLDER / "rows.c")
BUILDS = {"x86_64": ("x86-64-v3", "x86-64-v4", "cooperlake"), "aarch64": ("armv8-a",)}
# Not linked with an OpenMP library: the functions are those of the one that torch brings.
FLAGS = ("-std=gnu11", "-O3", "-mtune=generic", "-fPIC", "-fopenmp", "-Wall", "-Wextra")


def compile_kernels(folder: Path = FOLDER, builds: tuple[str, ...] | None = None) -> list[Path]:
    """Write `<source>.<build>.so` for `builds` [all of this machine's kind] into `folder`; none without gcc."""
    compiler = os.environ.get("CC", "gcc").split()
    if platform.system() != "Linux" or shutil.which(compiler[0]) is None:
        return []
    written = []
    builds = BUILDS.get(platform.machine(), ()) if builds is None else builds
    for source, build in itertools.product(SOURCES, builds):
        library = folder / f"{source.stem}.{build}.so"
        objects, linked = library.with_suffix(".o"), library.with_suffix(".new")
        try:
            compile_it = [*compiler, *FLAGS, f"-march={build}", "-c", str(source), "-o", str(objects)]
            subprocess.run(compile_it, check=True, capture_output=True, text=True)
            subprocess.run([*compiler, "-shared", str(objects), "-o", str(linked)], check=True, capture_output=True)
            linked.replace(library)  # whole or not at all: another process may be loading it
        except subprocess.CalledProcessError as failure:
            print(f"{library.name} was not built: {failure.stderr}")
        else:
            written.append(library)
        finally:
            objects.unlink(missing_ok=True)
    return written


class CompiledKernels(BuildHookInterface):
    """Puts the compiled kernels into the wheel, which they tie to this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it gathers the files of a wheel, or of an editable installation."""
        if libraries := compile_kernels():
            system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{system}"
            build_data["artifacts"] += [str(library.relative_to(self.root)) for library in libraries]


if __name__ == "__main__":
    for path in compile_kernels() or ["nothing: no C compiler was found"]:
        print(path)
