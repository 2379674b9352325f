# What people type. `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo install test lint format weights clean

demo: install
	$(BIN)/comem demo

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.developed: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: .venv/.developed
	$(BIN)/pytest

lint: .venv/.developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.developed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Makes the pocket models again from seeds: about 20 minutes on two cores.
weights: install
	$(BIN)/python -m rl.make_weights

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
