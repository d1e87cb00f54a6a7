PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run demo test test-long prove chaos chaos-honest lint protos docs screenshots bench lock clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

# The environment is complete when its stamp is newer than what it was made from.
$(VENV)/.run: requirements/run.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	touch $@

$(VENV)/.bench: $(VENV)/.run requirements/bench.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/bench.txt
	touch $@

run: $(VENV)/.run ## Start everything, send demo messages, stay until Ctrl-C
	$(BIN)/smsbill up --demo

demo: $(VENV)/.run ## The same, wait until all is final, check every figure, stop
	$(BIN)/smsbill demo

# A second SMSC that others wrote, to test against. Its tests are left out where it cannot be had.
$(VENV)/.node: tests/smsc_node/package-lock.json $(VENV)/.run
	npm ci --prefix tests/smsc_node --ignore-scripts --no-audit --no-fund --silent \
		|| echo "no Node.js or no packages for it: tests/unit/test_smpp_node.py is left out"
	touch $@

test: $(VENV)/.dev $(VENV)/.node ## Run the tests
	$(BIN)/python -m pytest

test-long: $(VENV)/.dev ## Run those that take long beside what they show
	$(BIN)/python -m pytest -m long --numprocesses=0

prove: $(VENV)/.dev ## Minutes of random sequences on the ledger and on broken copies of it (SEED=, PROVE_SECONDS=, ONLY=)
	$(BIN)/python -m scripts.prove

chaos: $(VENV)/.dev ## Break everything while messages are sent, and judge what became of each (SEED=, SEEDS=, MESSAGES=, ONLY=)
	$(BIN)/python -m chaos

chaos-honest: $(VENV)/.dev ## Switch off one safeguard at a time and see that chaos names just that damage (SEED=, TRIES=, ONLY=)
	$(BIN)/python -m chaos.honesty

lint: $(VENV)/.dev ## Style, types, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/buf lint
	$(BIN)/python scripts/generate_protos.py --check
	$(BIN)/python scripts/generate_docs.py --check

protos: $(VENV)/.dev ## Generate the stubs from protos/**/*.proto
	$(BIN)/python scripts/generate_protos.py

docs: $(VENV)/.dev ## Generate docs/rpcs.md, docs/settings.md and the list of metrics
	$(BIN)/python scripts/generate_docs.py

screenshots: $(VENV)/.dev ## Take docs/screenshots/*.png of the console from a running demo
	$(BIN)/python -m scripts.screenshots

bench: $(VENV)/.bench ## Measure every goal of docs/performance.md, an hour (ARGS=--quick: two minutes)
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/.dev ## Resolve the dependencies again
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade --extra build --extra tracing pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade --extra build --extra tracing --extra dev pyproject.toml -c requirements/run.txt -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade --extra build --extra tracing --extra bench pyproject.toml -c requirements/run.txt -o requirements/bench.txt

clean: ## Remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
