# `make demo` shows what Limbeck does; `make test` proves it. Both make a virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test lint types unit install clean

demo: $(VENV)/.ready
	$(BIN)/limbeck demo

test: lint types unit

install: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Limbeck and what it needs into $(VENV) (torch is pinned in constraints.txt)"
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.ready-for-tests: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@

lint: $(VENV)/.ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-for-tests
	$(BIN)/mypy

# Two worker processes with one thread each: the tests are many and small.
unit: $(VENV)/.ready-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
