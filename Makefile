PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench-overhead bench-speed

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## make .venv with bild and everything needed to test it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## translate a few sentences with the bundled pair, beside the large model alone
	$(BIN)/bild generate --input docs/demo.txt --compare --trace

test: setup ## run the tests
	$(BIN)/python -m pytest

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-overhead: setup ## share of a run that is not a forward pass
	$(BIN)/python benchmarks/overhead.py

bench-speed: setup ## BiLD beside the large model alone: make bench-speed DATA="a.jsonl.gz b.jsonl.gz"
	$(BIN)/python benchmarks/speed.py --data $(DATA)
