PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long test-all test-lowest check lint format types

demo: .venv/installed
	$(BIN)/timm-stochdepth demo

check: lint types test

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/installed
	$(BIN)/mypy

# what needs an environment of its own, or gigabytes, or an hour; pyproject.toml says it of `test`, too
APART := not composer and not families and not install and not trainers
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# at least one test of everything that users rely on, in minutes
test: .venv/installed
	$(PYTEST)

# the others
test-long: .venv/installed
	$(PYTEST) -m "long and $(APART)"

test-all: .venv/installed
	$(PYTEST) -m "$(APART)"

# of the lowest versions in pyproject.toml, with Composer; TESTS="tests/integrations/composer ..." runs a part of it
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 --dist worksteal \
		-m "not families and not install and not trainers" $(TESTS)

.venv-lowest/installed: pyproject.toml .venv/installed
	@echo 'Installing the lowest versions of torch, timm and the others into .venv-lowest: gigabytes, some minutes.'
	$(PYTHON) -m venv .venv-lowest
	$(BIN)/python tools/lowest_versions.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --constraint .venv-lowest/constraints.txt --editable '.[test,composer]'
	touch $@

# made once, and again when the dependencies change
.venv/installed: pyproject.toml
	@echo 'Installing torch, timm and what demo and tests need into .venv: gigabytes, some minutes, only this once.'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable '.[test]'
	touch $@
