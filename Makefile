# One command each for a newcomer: `make leaderboard` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quick
DEVICE ?= cuda

RESULTS := docs/results

.PHONY: leaderboard test check benchmark results costs clean

leaderboard: $(VENV)/installed
	$(BIN)/slugbench run quick --out $(OUT)

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/installed
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -q

# What the README and docs/ say of the suites `standard`, four hours with tuned parameters, and `standard-canvas`, one or two;
# both are resumed where they stopped.
results: $(VENV)/installed
	$(BIN)/slugbench run standard --params standard --out runs/standard
	$(BIN)/slugbench report runs/standard --format claims --out $(RESULTS)
	$(BIN)/slugbench report runs/standard --format text,md,latex,figures --out $(RESULTS)/standard
	rm -f $(RESULTS)/standard/figures/*profile.svg  # megabytes; the PDF is a tenth
	$(BIN)/python examples/layer_map.py identities hugo-alder $(RESULTS)/standard/figures/identities-hugo-alder-layers.pdf
	cp runs/standard/table.parquet runs/standard/run.json $(RESULTS)/standard/
	$(BIN)/python -m slugbench.bench.forecast runs/standard > bench/suites/standard.seconds.csv
	$(BIN)/slugbench run standard-canvas --out runs/standard-canvas
	$(BIN)/slugbench report runs/standard-canvas --format text,md,latex,figures --out $(RESULTS)/standard-canvas
	rm -f $(RESULTS)/standard-canvas/figures/*profile.svg $(RESULTS)/standard-canvas/figures/*pictures*.svg
	cp runs/standard-canvas/table.parquet runs/standard-canvas/run.json $(RESULTS)/standard-canvas/
	$(BIN)/python -m slugbench.bench.forecast runs/standard-canvas > bench/suites/standard-canvas.seconds.csv
	$(BIN)/python docs/calibration.py runs/standard --out docs/calibration.md
	$(BIN)/python .ci/readme.py "results=$(RESULTS)/standard/leaderboard.txt#identities: single requests"

# First what needs no GPU.
costs: $(VENV)/installed
	$(BIN)/python docs/people.py
	$(BIN)/python docs/costs.py clip --device $(DEVICE)
	$(BIN)/python docs/costs.py sd --device $(DEVICE)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("slugbench needs Python 3.11 or newer; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
