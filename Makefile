# Each target does its own set-up: the first one to run makes .venv, later ones reuse it, and a change of
# pyproject.toml installs again. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# accelerate launch would otherwise give one thread to a machine with few cores
THREADS := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

# One test process on each core; one that is done takes over tests of another
PYTEST := $(BIN)/python -m pytest -q -n logical --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test faults upstream oldest gpu docs quality format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

train: $(INSTALLED) ## train TinyNet-E on handwritten digits, a few minutes on two CPU cores
	$(BIN)/accelerate launch --quiet --config_file configuration/accelerate/cpu.yaml \
		--num_cpu_threads_per_process $(THREADS) train.py --recipe configuration/quickstart.yaml \
		--run_name quickstart-$$(date +%Y%m%d-%H%M%S)

test: $(INSTALLED) ## run all tests that need no GPU, without network
	$(PYTEST) -m "not gpu"

faults: $(INSTALLED) ## kill, damage and starve training in every way that docs/fault-tolerance.md lists, half an hour
	$(PYTEST) -m fault --thorough --faults_table=benchmarks/results/faults.json tests

upstream: $(INSTALLED) ## run transformers' own tests of a vision model on TinyNet (downloads their sources)
	$(BIN)/python tests/upstream/run.py

# A folder of its own, which stays until `make clean`
OLDEST := .venv-oldest
OLDEST_PYTHON ?= python3.11
oldest: $(OLDEST)/.installed ## test the model and the trainer with the oldest versions that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest -q -n logical --dist worksteal -m "not gpu" \
		tests/modeling_tinynet tests/training tests/hub tests/test_train.py::test_a_run_leaves_everything

# On a machine that brings its own PyTorch, nothing is installed: make gpu GPU_PYTHON=python3
# What that Python lacks may lie on PYTHONPATH. For options: make gpu GPU_FLAGS="--output FOLDER --budget_s 300"
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(INSTALLED)) ## tests and benchmark that need a GPU, ten minutes, without network
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_FLAGS)

docs: $(INSTALLED) ## write the tables and the chart of README.md and docs/ from benchmarks/results/
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.readme

quality: $(INSTALLED) .venv/mlinter-rules.toml ## lint, formatting, model structure, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mlinter --no-cache --no-progress --rules-toml .venv/mlinter-rules.toml modeling_tinynet
	$(BIN)/mypy

format: $(INSTALLED) ## rewrite the code as `make quality` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the .venv folders, caches and builds; runs/ stays
	rm -rf .venv $(OLDEST) .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " \
		+ sys.version.split()[0] + ": try make PYTHON=python3.11")'
	@echo "Installing into .venv: a few minutes, about 6 GB, most of it PyTorch's"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --editable ".[test,dev]"
	@touch $@

# pip always takes the newest version that is allowed; uv can take the oldest of what pyproject.toml names.
$(OLDEST)/.installed: pyproject.toml
	@command -v $(OLDEST_PYTHON) > /dev/null || { echo "$(OLDEST_PYTHON) is not installed: it is the oldest Python that" \
		"pyproject.toml allows. Another one: make oldest OLDEST_PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(OLDEST): a few minutes, about 7 GB, most of it PyTorch's"
	@rm -rf $(OLDEST)
	@$(OLDEST_PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/pip install -qq uv
	@$(OLDEST)/bin/uv pip install --quiet --no-cache --python $(OLDEST)/bin/python \
		--resolution lowest-direct --editable ".[test]"
	@touch $@

# mlinter has no switch that turns a rule off, so its own rule table is copied with TRF057 not enabled:
# @auto_docstring outside of transformers' tree documents "a None model" and prints errors at import.
.venv/mlinter-rules.toml: $(INSTALLED)
	sed '/^\[rules\.TRF057\]/,/^default_enabled/ s/^default_enabled = true/default_enabled = false/' \
		"$$($(BIN)/python -c 'from mlinter.mlinter import DEFAULT_RULE_SPECS_PATH; print(DEFAULT_RULE_SPECS_PATH)')" > $@
