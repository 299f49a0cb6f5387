PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_INSTALLED := $(VENV)/.test-installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-clean test soak families curves lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[demo]" --constraint constraints.txt
	@touch $@

$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[demo,test]" --constraint constraints.txt
	@touch $@

# Huge pages save a CPU the page faults of a step's buffers; a libc that does not know the variable ignores it.
demo: $(INSTALLED)  ## train, evaluate, export and question a small multimodal LLM
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m mllm_jax.demo --output demo

demo-clean:  ## remove what the demo made
	rm -rf demo

test: $(TEST_INSTALLED)  ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(TEST_INSTALLED)  ## run the long tests
	$(BIN)/python -m pytest -n 2 -m soak

families: $(TEST_INSTALLED)  ## measure every family of models, and write docs/families.md
	$(BIN)/python -m tests.support.families_table

curves: $(INSTALLED)  ## train the tiny twin of every recipe on the demo's scenes, and write docs/curves.md (an hour)
	$(BIN)/python -m pip install --quiet --editable ".[demo,docs]" --constraint constraints.txt
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python benchmarks/reference_curves.py

lint: $(TEST_INSTALLED)  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TEST_INSTALLED)  ## format the code in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
