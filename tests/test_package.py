"""The package as a user gets it: built, installed alone, imported from elsewhere, with and without its extras."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare_python(wheel, tmp_path_factory):
    """An interpreter that has the wheel, and beside it only the dependencies, not this checkout."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    # A path in a .pth file does not run the .pth files found there, so the checkout's editable install stays out.
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"moe_codegen", "moe_codegen_kernels"}


def test_the_installed_wheel_imports_from_outside_the_checkout(bare_python, tmp_path):
    names = "MoEForCausalLM, MoEConfig, upcycle, extract"
    code = f"import moe_codegen; from moe_codegen import {names}; print(moe_codegen.__file__)"
    printed = run(bare_python, "-c", code, cwd=tmp_path)
    assert str(bare_python.parents[1]) in printed


def test_the_installed_command_answers(bare_python, tmp_path):
    printed = run(bare_python.parent / "moe-codegen", "--help", cwd=tmp_path)
    assert "upcycle" in printed


def test_the_import_needs_no_optional_package(bare_python, tmp_path):
    optional = ("triton", "datasets", "accelerate", "peft", "matplotlib")
    absent = f"import sys; sys.modules.update(dict.fromkeys({optional}))"  # None makes an import fail
    run(bare_python, "-c", f"{absent}; from moe_codegen import MoEForCausalLM", cwd=tmp_path)


def test_kernels_is_no_package_where_it_would_shadow_hugging_faces_own():
    assert not (ROOT / "kernels" / "__init__.py").exists()
