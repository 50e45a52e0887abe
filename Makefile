# `make demo` and `make test` do everything themselves: a virtual environment, pinned dependencies, the job.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow lint types check schema clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Elastic needs Python 3.10 or later; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# From nothing to a proven ONNX file: train, plot, cut to half of the FLOPs, export, verify, measure.
demo: $(INSTALLED)
	rm -rf demo/report demo/half demo/bundle
	test -d demo/universal || $(BIN)/elastic train recipes/matformer.yaml -o demo/universal $(if $(wildcard demo/universal.training),--resume)
	$(BIN)/elastic info demo/universal
	$(BIN)/elastic eval demo/universal
	$(BIN)/elastic pareto demo/universal -o demo/report
	$(BIN)/elastic extract demo/universal --flops 50% -o demo/half
	$(BIN)/elastic export demo/half --to onnx -o demo/bundle
	$(BIN)/elastic verify demo/bundle
	$(BIN)/elastic bench demo/bundle
	@echo "Done. Open demo/report/index.html in a browser."

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config pyproject.toml >/dev/null || $(BIN)/lint-imports --config pyproject.toml

types: $(INSTALLED)
	$(BIN)/mypy

check: lint types test

schema: $(INSTALLED)
	$(BIN)/python -m elastic.recipe > recipes/recipe.schema.json

clean:
	rm -rf $(VENV) demo build dist *.egg-info
