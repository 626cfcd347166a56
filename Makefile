# Every target makes its own virtual environment first and is safe to run again.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed

.PHONY: demo test gpu-test kernels-verify lint bench clean

$(INSTALLED): pyproject.toml $(CONSTRAINTS) $(wildcard kernels/moe_codegen_kernels/cpu/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[test]"
	touch $@

demo: $(INSTALLED)  ## train a small dense model, convert it, verify it, complete a function
	$(BIN)/moe-codegen demo --out demo-output

test: lint  ## lint, types, import contract and every test that needs no GPU
	$(BIN)/python -m pytest --numprocesses 2
	TRITON_INTERPRET=1 $(BIN)/python -m pytest --numprocesses 2 tests/kernels/numerics
	KERNELS_EMULATE=1 $(BIN)/python -m pytest --numprocesses 2 tests/kernels/numerics

gpu-test: $(INSTALLED)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu --numprocesses 4 tests/kernels/test_gpu.py

kernels-verify: $(INSTALLED)  ## every shipped kernel tile for every architecture: read its machine code, and execute it
	KERNELS_VERIFY=all $(BIN)/python -m pytest --numprocesses 2 tests/kernels/compiled tests/kernels/emulator

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## every benchmark; `.venv/bin/python -m benchmarks CASE` runs one
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist demo-output
