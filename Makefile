# Every target does all set-up on a fresh machine: a virtual environment, the locked dependencies, the package.
#   make compare   train the quick study anew and print its leaderboard
#   make test      run the tests
#   make check     lint, types and the fast tests, for daily work
#   make docs      build the documentation site into build/site
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# A module's tests share what its fixtures train, so they stay on one worker; tests/conftest.py puts the longest first.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: setup compare test lint check docs bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "open-bench needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies (a minute or two) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

compare: setup
	$(BIN)/openbench compare quick --results results/quick

test: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(PYTEST) -m "not slow" --quiet

docs: setup
	$(BIN)/python tooling/stage_site.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "The site: build/site/index.html"

bench: setup
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/optimizers.py

clean:
	rm -rf $(VENV) build dist results/quick
