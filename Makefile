# Every verb of the project. People, hooks and CI call the same targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The one place where the version of uv is stated is pyproject.toml.
UV := $(shell sed -n 's/^ *"\(uv==[0-9.]*\)",/\1/p' pyproject.toml)
STAMP := $(VENV)/.synced
ARGS ?=
# Arguments for pytest processes side by side. One process: ARGS=-n0
PER_CORE := -n logical --dist worksteal
# Tests with servers mostly wait for them: two files per core, in the order of the folders.
SIDE_BY_SIDE := -n 4 --dist loadfile --no-loadscope-reorder
# With ARGS, pytest may find no match in a suite (exit status 5); without, a suite must have tests.
MAY_BE_EMPTY = $(if $(strip $(ARGS)), || test $$? -eq 5)

export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)
# Compiled once at set-up, services start twice as fast, also where Python must not write.
export UV_COMPILE_BYTECODE := 1
# Also where the environment forbids it: uncached, each of the many processes of the tests would
# compile what changed since the set-up, and each worker of pytest all tests.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test t test-servers test-unit test-integration test-e2e test-chaos test-mlflow test-schemathesis \
	test-simulation test-chaos-small check format lint types imports bench docs docs-check language clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install everything that uv.lock names

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else 1)' || { \
		echo "Penstock needs Python 3.11, 3.12 or 3.13; $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)

$(STAMP): uv.lock $(BIN)/uv
	$(BIN)/uv sync --quiet --frozen --inexact --all-packages --all-extras
	@$(BIN)/python -m compileall -q shared/src services
	@touch $@

demo: setup ## Run the example agent and workflow on an embedded stack
	$(BIN)/python examples/demo.py $(ARGS)

dev: setup ## Start nats-server and the six services on loopback
	$(BIN)/penstock dev $(ARGS)

test: test-unit test-servers ## Run all tests; ARGS="-k name" selects by name

t: setup ## Run single tests in one process: make t T=tests/unit/test_stack.py::test_name
	$(BIN)/pytest $(or $(T),$(error T is empty: make t T=tests/unit/test_stack.py)) $(ARGS)

test-servers: setup ## Run chaos (small), e2e and integration tests, the longest files first
	$(BIN)/pytest tests/chaos tests/e2e tests/integration $(SIDE_BY_SIDE) $(ARGS)$(MAY_BE_EMPTY)

test-unit: setup ## Run the tests that need no server
	$(BIN)/pytest tests/unit tests/properties tests/contracts tests/simulation examples $(PER_CORE) $(ARGS)$(MAY_BE_EMPTY)

test-integration: setup ## Run one service at a time against real servers
	$(BIN)/pytest tests/integration $(SIDE_BY_SIDE) $(ARGS)$(MAY_BE_EMPTY)

test-e2e: setup ## Run all services as processes
	$(BIN)/pytest tests/e2e $(SIDE_BY_SIDE) $(ARGS)$(MAY_BE_EMPTY)

test-chaos: setup ## Kill, stop and cut off everything under full load; ends with figures
	CHAOS_SIZE=full $(BIN)/pytest tests/chaos $(ARGS)

test-chaos-small: setup ## The same with fewer runs and blows
	$(BIN)/pytest tests/chaos $(ARGS)$(MAY_BE_EMPTY)

test-simulation: setup ## Run 10,000 simulated installations, each from one seed
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation $(ARGS)

wheels: setup ## Build wheels into dist/, also compiled ones where a C compiler is installed
	$(BIN)/python deploy/wheels/build.py $(ARGS)

.compiled: setup ## Create the virtual environment .compiled with the wheels in dist/
	@ls dist/penstock-*-cp*.whl >/dev/null || { echo "dist/ has no compiled wheel: make wheels" >&2; exit 1; }
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .compiled
	$(BIN)/uv export --quiet --frozen --all-packages --all-extras --no-emit-workspace --no-hashes \
		--output-file dist/requirements.txt
	$(BIN)/uv pip install --quiet --python .compiled --requirement dist/requirements.txt
	$(BIN)/uv pip install --quiet --no-cache --python .compiled --no-index --no-deps --find-links dist \
		$$($(BIN)/uv workspace list | grep -v '^penstock-workspace$$')

test-compiled: .compiled ## Run the tests on the compiled wheels in dist/ (after make wheels)
	.compiled/bin/pytest tests/unit tests/properties tests/contracts -m "not sources" $(PER_CORE) $(ARGS)$(MAY_BE_EMPTY)
	.compiled/bin/pytest tests/chaos tests/e2e tests/integration -m "not sources" $(SIDE_BY_SIDE) $(ARGS)$(MAY_BE_EMPTY)

test-mlflow: setup ## The MLflow sink against a real MLflow, in a venv of its own (.mlflow)
	@test -x .mlflow/bin/mlflow || { $(PYTHON) -m venv .mlflow && \
		.mlflow/bin/python -m pip install --quiet --disable-pip-version-check mlflow; }
	PENSTOCK_TEST_MLFLOW=$(CURDIR)/.mlflow/bin/mlflow $(BIN)/pytest tests/integration/archive/test_mlflow.py $(ARGS)

test-schemathesis: setup ## Schemathesis against the API of a stack, in a venv of its own (.schemathesis)
	@test -x .schemathesis/bin/schemathesis || { $(PYTHON) -m venv .schemathesis && \
		.schemathesis/bin/python -m pip install --quiet --disable-pip-version-check schemathesis==4.32.5; }
	$(BIN)/python -m tests.schemathesis $(ARGS)

check: lint types imports docs-check language ## Run all static checks

format: setup ## Rewrite the code in the house format
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format .

lint: setup ## Check format and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy

imports: setup ## Check who may import whom
	$(BIN)/lint-imports --no-logo

bench: setup ## Measure, print a table, append to bench/results.jsonl
	$(BIN)/python -m bench $(ARGS)

docs-check: setup ## Compare the generated pages with the code
	$(BIN)/python docs/generate.py --check

language: setup ## Count stilted phrases; ARGS="--report PATH" lists them
	$(BIN)/python docs/language.py $(ARGS)

docs: setup ## Generate the reference pages under docs/
	$(BIN)/python docs/generate.py $(ARGS)

clean: ## Remove .venv, caches and local state
	rm -rf $(VENV) .penstock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
