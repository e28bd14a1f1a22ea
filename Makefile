# One door for everything: each target sets up what it needs and says what it does.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help setup engine demo test test-unit test-kills check format bench flapping soak proto sync-client lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install Python packages into .venv
	@deploy/scripts/python.sh

engine: ## Install and start the container engine if there is none
	@deploy/scripts/engine.sh

demo: setup engine ## Run the main job end to end on the embedded default and print what happened
	@$(BIN)/python deploy/demo.py

test: setup engine ## Run all tests, on a real engine and a real OpenBao
	@deploy/scripts/test-services.sh
	@PYTHONPATH=tests $(BIN)/python -m support.prepare
	@$(BIN)/pytest

test-unit: setup ## Run the tests that need no engine
	@$(BIN)/pytest tests/unit

test-kills: setup engine ## Kill the gateway at 200 random moments under load, and check what it leaves
	@deploy/scripts/test-services.sh
	@PYTHONPATH=tests $(BIN)/python -m support.prepare
	@CALLGATE_KILLS=200 $(BIN)/pytest tests/integration/test_random_kills.py

check: setup ## Format, lint, types, layers, drift of generated code, mirror of tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@cd proto && ../$(BIN)/buf lint
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/python client/generate_sync.py --check
	@$(BIN)/python tests/mirror.py

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup engine ## Measure; never fails for being slow (RECORD=1 writes tests/bench/RESULTS.md too)
	@$(BIN)/python tests/bench/bench.py $(if $(RECORD),--record)

flapping: setup ## Show what a circuit breaker lets through to an upstream that comes and goes
	@PYTHONPATH=tests $(BIN)/python tests/bench/flapping.py

soak: setup engine ## Make 5000 calls among random kills and count what is left (CALLS=500 makes fewer)
	@$(BIN)/python tests/bench/soak.py $(if $(CALLS),--calls $(CALLS))

proto: setup ## Regenerate the wire types
	@$(BIN)/python proto/generate.py

sync-client: setup ## Regenerate the synchronous client
	@$(BIN)/python client/generate_sync.py

lock: ## Pin all Python packages by hash
	@deploy/scripts/lock.sh

clean: ## Remove what the targets above made here (not the images)
	rm -rf .venv .callgate .wheels .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
