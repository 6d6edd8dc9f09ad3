# `make run` trains, certifies, attacks and reports a NEMON on MNIST; `make test` proves the library right.
PY      ?= python3
BIN     := .venv/bin
# A folder of wheels that pip is configured with, if there is one (uv does not read pip's configuration).
WHEELS  := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(shell $(PY) -m pip config get global.find-links 2>/dev/null))
UVFLAGS := $(if $(WHEELS),--find-links $(WHEELS)) -c constraints.txt
CONFIG  ?= configs/nemon-mnist.toml

.PHONY: setup setup-run run test lint bench docs results clean

setup-run: .venv/.run
setup: .venv/.dev

.venv/bin/uv:
	$(PY) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

.venv/.run: pyproject.toml constraints.txt | .venv/bin/uv
	$(BIN)/uv pip install -q --python $(BIN)/python $(UVFLAGS) -e .
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/uv
	$(BIN)/uv pip install -q --python $(BIN)/python $(UVFLAGS) -e '.[tensorboard,sdp,onnx]' --group dev
	@touch $@ .venv/.run

.venv/.bench: .venv/.dev
	$(BIN)/uv pip install -q --python $(BIN)/python $(UVFLAGS) -e '.[bench]'
	@touch $@

run: setup-run
	$(BIN)/wellposed run $(CONFIG)

test: setup
	$(BIN)/python -m pytest -q -n auto

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python tools/import_contract.py

bench: .venv/.bench
	$(BIN)/python -m benchmarks

results: setup-run
	$(BIN)/python tools/results_table.py

docs: setup
	$(BIN)/python -m pytest -q tests/docs

clean:
	rm -rf .venv runs dist site .pytest_cache .ruff_cache .hypothesis
