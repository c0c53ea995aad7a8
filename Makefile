# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check bench docs cards clean

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo

test: .venv/installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: .venv/installed-dev
	$(BIN)/pytest -m slow

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.merge
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.select
	$(BIN)/python -m benchmarks.moe_layer

docs: cards
	$(BIN)/python scripts/help_pages.py

cards: .venv/installed-dev
	$(BIN)/python scripts/model_cards.py

clean:
	rm -rf .venv build dist

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hubmerge needs Python 3.11 or newer: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --editable '.[dev]'
	touch $@ .venv/installed
