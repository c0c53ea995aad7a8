# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# Every worker of pytest and every command would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE
# Tests run as on a machine where nobody has set it.
unexport PYTHONUNBUFFERED

RECIPES := $(patsubst %/recipe.yaml,%,$(wildcard recipes/*/recipe.yaml))

.PHONY: demo demo-moe demo-llm test test-slow test-page test-lm-eval conformance check bench docs cards smoke reproduce clean

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo

# Mixtures of the demo's experts.
demo-moe: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo-moe

# A real language model from a wheel: trained, chosen, merged, generating.
demo-llm: .venv/installed-gguf
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo-llm

test: .venv/installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not browser"

# Variants of what `make test` checks, and the tests with many examples with all of them.
test-slow: .venv/installed-dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -n 2 --dist loadfile -m "slow or hypothesis"

# The Hub's pages in a browser: needs Chromium or Chrome on the PATH (apt-get install chromium).
test-page: .venv/installed-dev
	$(BIN)/pip install --editable '.[browser]'
	$(BIN)/pytest tests/server/pages/test_in_browser.py

# lm_eval and what it needs are 360 MB, so it is not among the other tools.
test-lm-eval: .venv/installed-dev
	$(BIN)/pip install --editable '.[lm-eval]'
	$(BIN)/pytest tests/compat/test_lm_eval.py tests/compat/test_lm_eval_tasks.py

# The tests of the client library against the embedded Hub; ten minutes.
conformance: .venv/installed-dev
	$(BIN)/pip install --quiet pytest-asyncio pytest-mock pytest-timeout pytest-vcr jedi
	$(BIN)/python scripts/conformance/run.py

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Every recipe, tiny: does it run? Minutes.
smoke: .venv/installed
	$(BIN)/hubmerge run $(RECIPES) --profile smoke --work build/smoke

# Every recipe, mini profile: hours. What was made is kept, so it goes on where it ended.
reproduce: .venv/installed-gguf
	$(BIN)/hubmerge run $(RECIPES) --profile mini --work build/recipes
	$(BIN)/hubmerge report $(foreach recipe,$(RECIPES),build/recipes/$(notdir $(recipe))-mini) \
	  --out build/recipes/report.html
	$(BIN)/hubmerge run $(RECIPES) --profile mini --work build/recipes --check --quiet

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.open
	$(BIN)/python -m benchmarks.merge
	$(BIN)/python -m benchmarks.adapters
	$(BIN)/python -m benchmarks.memory_merges
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.callback
	$(BIN)/python -m benchmarks.select
	$(BIN)/python -m benchmarks.hub_scale
	$(BIN)/python -m benchmarks.moe_layer
	$(BIN)/python -m benchmarks.runner
	$(BIN)/python -m benchmarks.check_rows
	$(BIN)/python -m benchmarks.hub

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

KERNELS := hatch_build.py hubmerge/merging/kernels.c

.venv/installed: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-gguf: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/pip install --editable '.[gguf]'
	touch $@ .venv/installed

.venv/installed-dev: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/pip install --editable '.[dev]'
	touch $@ .venv/installed
