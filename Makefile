# One command each for a newcomer: `make leaderboard` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quick
DEVICE ?= cuda

.PHONY: leaderboard test check benchmark costs clean

leaderboard: $(VENV)/installed
	$(BIN)/slugbench run quick --out $(OUT)

test: $(VENV)/installed
	$(BIN)/python -m pytest -q

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/installed
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -q

costs: $(VENV)/installed
	$(BIN)/python docs/costs.py clip --device $(DEVICE)
	$(BIN)/python docs/costs.py sd --device $(DEVICE)
	$(BIN)/python docs/costs.py people

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("slugbench needs Python 3.11 or newer; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
