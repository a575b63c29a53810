# `make demo` packs a real model and talks to it; `make test` is everything that CI runs. Both start from a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := tessera tessera_compiler tessera_pack tessera_runtime tests tools benchmarks examples
GENERATORS = $(wildcard tools/generate_*.py)

.PHONY: help demo install test test-fast test-slow test-triton lint format docs check-docs check-install benchmark clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Anyone who already has a filled environment may touch the stamp; pip then is not called again until the files below change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
		|| { echo "Tessera needs Python 3.10 to 3.12; name one with: make PYTHON=python3.11" >&2; exit 1; }
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[compile,serve,test,dev]'
	touch $(STAMP)

install: $(STAMP) ## make the virtual environment

demo: $(STAMP) ## get SmolLM2, pack it, ask it a question
	$(BIN)/python tools/demo.py

# In this order, so that what comes before the last shows that nothing else needs Triton.
test: lint check-docs check-install test-fast test-slow test-triton ## everything that CI runs

test-fast: $(STAMP) ## tests that need no model, under 3 minutes
	$(BIN)/python -m pytest -m "not slow" -q -n 2 --dist loadfile

test-triton: $(STAMP) ## compile and interpret every kernel for GPUs, with Triton (641 MB) in a folder of its own
	$(BIN)/python tools/run_triton_tests.py -q -n 2 --dist loadfile tests/devices

test-slow: $(STAMP) ## tests with the real SmolLM2
	$(BIN)/python tools/fetch_smollm2.py
	$(BIN)/python -m pytest -m slow -q -n 2 --dist loadfile

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/python -m mypy

format: $(STAMP) ## rewrite the code in the house style
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

docs: $(STAMP) ## write the generated pages again
	for generator in $(GENERATORS); do $(BIN)/python $$generator; done

check-docs: $(STAMP) ## fail if a generated page is out of date
	for generator in $(GENERATORS); do $(BIN)/python $$generator --check; done
	$(BIN)/python tools/check_dependencies.py

check-install: $(STAMP) ## install the runtime alone, say what it weighs, run it
	$(BIN)/python tools/measure_runtime_install.py

benchmark: $(STAMP) ## measure against other engines, on an idle machine
	$(BIN)/python -m benchmarks.cpu

clean: ## remove everything that was made here
	rm -rf $(VENV) .demo .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find $(wildcard $(CODE)) -name __pycache__ -prune -exec rm -rf {} +
