# Two commands matter: `make up` protects this computer, `make test` proves it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE ?=

.PHONY: help up down status prove test test-vm check format fuzz bench lock docs clean

help: ## List what can be done
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/.run ## Install what is missing, start manager and agent, protect this computer
	@$(BIN)/keibi up

down: ## Stop what `make up` started (data stays)
	@if [ -x $(BIN)/keibi ]; then $(BIN)/keibi down; else echo "Nothing is installed here, so nothing runs from here."; fi

status: $(VENV)/.run ## Show what runs and how it is
	@$(BIN)/keibi status

prove: $(VENV)/.run ## Trigger each protection module harmlessly and show what arrived
	@$(BIN)/keibi prove

test: $(VENV)/.dev ## Install what the tests need and run all of them
	@$(BIN)/python scripts/test.py

test-vm: $(VENV)/.dev ## Test the kernel guard on Debian's stock kernels, in QEMU
	@scripts/install_packages.sh vm
	@$(BIN)/pytest -q tests/vm

check: $(VENV)/.dev ## Style, types and architecture only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry src

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix -q . || true
	$(BIN)/ruff format .

fuzz: $(VENV)/.dev ## Throw broken input at the parsers of hostile bytes (FUZZ_SECONDS each)
	@$(BIN)/python scripts/fuzz.py

bench: $(VENV)/.dev ## Measure beside peers and print the table
	@scripts/install_packages.sh bench
	@$(BIN)/python benchmarks/run.py

lock: $(VENV)/.dev ## Resolve requirements/*.txt anew (needs uv on the PATH)
	@scripts/lock.sh

docs: $(VENV)/.dev ## Write docs/reference from the code
	@$(BIN)/python scripts/reference.py
	@$(BIN)/python scripts/ways_round.py

clean: ## Remove what was installed here (not the data under /var/lib/keibi)
	rm -rf $(VENV) build src/keibi.egg-info .mypy_cache .ruff_cache .pytest_cache

NATIVE := $(wildcard src/keibi/agent/linux/*.c src/keibi/agent/linux/bpf/*.c setup.py)

$(VENV)/bin/python:
	@scripts/install_packages.sh run
	@echo "Creating the Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Keibi needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=... to another one.")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml $(NATIVE) scripts/install_packages.sh | $(VENV)/bin/python
	@scripts/install_packages.sh run
	@scripts/install_python.sh $(BIN) requirements/run.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/run.txt pyproject.toml $(NATIVE) scripts/install_packages.sh | $(VENV)/bin/python
	@scripts/install_packages.sh run test
	@scripts/install_python.sh $(BIN) requirements/dev.txt
	@touch $@ $(VENV)/.run
