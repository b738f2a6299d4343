PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-thorough test-versions check docs bench-overhead bench-step bench-policies bench-engines bench-peers bench-chat fuzz test-ray soak

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
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not thorough"

test-thorough: setup ## the tests of further kinds that make test leaves out
	$(BIN)/python -m pytest -n auto --dist worksteal -m thorough

# Each version lies, with what it needs, in a folder in front of the one that setup has installed into.
OLDEST = transformers==5.17.0
NEWEST = transformers
VERSIONED_TESTS ?= tests
test-versions: setup ## run the tests that compile nothing against the oldest and the newest transformers
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/versions/oldest '$(OLDEST)'
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/versions/newest '$(NEWEST)'
	version() { $(BIN)/python -c 'import transformers; print(transformers.__version__)'; }; \
	installed=$$(version); \
	for age in oldest newest; do \
	  export PYTHONPATH=$(CURDIR)/$(VENV)/versions/$$age; echo "transformers $$(version)"; \
	  if [ "$$(version)" = "$$installed" ]; then echo "is what make test runs with"; continue; fi; \
	  $(BIN)/python -m pytest -n auto --dist worksteal -m 'not compiles and not thorough' $(VERSIONED_TESTS) || exit 1; \
	done

# What these need is heavy, and lies beside what setup has installed.
fuzz: setup ## let schemathesis look for a request that is answered by a 500
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/fuzz 'schemathesis>=4.32'
	PYTHONPATH=$(CURDIR)/$(VENV)/fuzz BILD_FUZZ_EXAMPLES=$${BILD_FUZZ_EXAMPLES:-200} $(BIN)/python -m pytest -p no:cacheprovider tests/serving/test_fuzz.py

test-ray: setup ## kill a replica under load, and 20,000 lines through Ray Data
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/ray 'ray[serve,data]>=2.60'
	PYTHONPATH=$(CURDIR)/$(VENV)/ray RAY_worker_niceness=0 BILD_RAY_LINES=$${BILD_RAY_LINES:-20000} $(BIN)/python -m pytest tests/serving/test_ray.py

soak: setup ## 1,000 requests, 64 at a time, of clients that come and go: make soak DATA=a.jsonl.gz
	$(BIN)/python benchmarks/soak.py --data $(DATA)

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## rewrite docs/cli.md from the program
	$(BIN)/python -m bild.cli.reference > docs/cli.md

bench-engines: setup ## CTranslate2 beside BiLD, each at its best: make bench-engines DATA="a.jsonl.gz b.jsonl.gz"
	$(BIN)/python benchmarks/engines.py --data $(DATA) --docs

bench-overhead: setup ## share of a run that is not a forward pass
	$(BIN)/python benchmarks/overhead.py

bench-step: setup ## ms of a forward pass by runtime and tokens read, beside the memory floor
	$(BIN)/python benchmarks/step.py --docs

bench-policies: setup ## every policy on test sets: make bench-policies DATA="a.jsonl.gz b.jsonl.gz"
	$(BIN)/python benchmarks/policies.py --data $(DATA) --docs

bench-peers: setup ## other engines beside BiLD: make bench-peers DATA="a.jsonl.gz b.jsonl.gz" DEV="a_dev.jsonl.gz b_dev.jsonl.gz"
	$(BIN)/python benchmarks/peers.py --data $(DATA) --dev $(DEV) --docs

bench-chat: setup ## chat engines beside BiLD: make bench-chat LARGE=chat.gguf [SMALL=drafter PROMPTS=question.jsonl LIMIT=6]
	$(BIN)/python benchmarks/chat_peers.py --large $(LARGE) $(if $(SMALL),--small $(SMALL)) --prepare
	$(BIN)/python benchmarks/chat_peers.py --large $(LARGE) $(if $(SMALL),--small $(SMALL)) $(if $(PROMPTS),--prompts $(PROMPTS)) --limit $(or $(LIMIT),6)
