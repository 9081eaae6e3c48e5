# Each command makes what it needs: a virtual environment in .venv, packages pinned with hashes, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := 0.13.9
STEPS ?= 100000
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo up status automations lint check docs test fleettest everything kills mutants simulate fleet fleetsoak scale soak bench lock release clean
.DEFAULT_GOAL := help

help: ## Show the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

$(VENV)/run: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/fleet: $(VENV)/run requirements-fleet.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-fleet.txt
	@touch $@

demo: $(VENV)/run ## Rotate a key three times while a consumer uses it, and show what happened
	$(BIN)/python -m sandbox.demo

up: $(VENV)/run ## Keep a dashboard running with everything wired, until Ctrl-C
	$(BIN)/python -m sandbox.up

# An unhealthy rotation is no failure of make; a script calls python -m flows.status, whose exit code tells.
status: $(VENV)/run ## Show every rotation of the Prefect server that PREFECT_API_URL names; ARGS=--json for programs
	@$(BIN)/python -m flows.status $(ARGS) || true

automations: $(VENV)/run ## Make the automations of automations/*.yaml; ARGS="--notify slack-webhook/on-call" for those that notify
	$(BIN)/python -m flows.automations $(ARGS)

lint: $(VENV)/dev ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint ## Check style and types, and run every test that needs no server, in about a minute and a half
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --hypothesis-profile quick -m "not e2e and not slow"

docs: $(VENV)/dev ## Build the documentation into site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The documentation was built, and every link in it checked: open site/index.html"

test: $(VENV)/dev ## Run the tests, all but those that take long
	$(BIN)/python -m pytest -n 6 --dist loadgroup -m "not exhaustive"

fleettest: $(VENV)/dev ## Run the core's tests on PostgreSQL, and kill each part of a small fleet once
	$(BIN)/python -m pytest tests/e2e/postgresql tests/e2e/test_fleet.py -n 2 --dist loadgroup

everything: $(VENV)/dev ## Run every test, on PostgreSQL and on a whole fleet too, and each kill: an hour or more
	$(BIN)/python -m pytest -n 3 --dist loadgroup

kills: $(VENV)/dev ## Kill real runs at each of their effects, and the parts of a small fleet; refuse writes, stop services
	$(BIN)/python -m pytest tests/e2e/test_kills.py tests/e2e/test_late_writes.py tests/e2e/test_fleet.py -n 2 --dist loadfile -v

mutants: $(VENV)/dev ## Plant wrong versions of the protocol, and show that each one is caught
	$(BIN)/python -m tests.simulation.mutants

simulate: $(VENV)/dev ## Run simulated histories with a new seed, which is printed; STEPS=50000 says how many steps
	$(BIN)/python -m tests.simulation --steps $(STEPS)

fleet: $(VENV)/fleet ## Rotate 200 keys on PostgreSQL, Redis and several servers, and kill them; ARGS="--seed 1" for another order
	$(BIN)/python -m sandbox.fleet $(ARGS)

fleetsoak: $(VENV)/fleet ## Rotate on such a fleet for an hour while calls fail and parts are killed; ARGS="--minutes 10" for less
	$(BIN)/python -m sandbox.fleet.soak $(ARGS)

scale: $(VENV)/run ## Measure 2,000 rotations with 60,000 old runs in PostgreSQL against an empty server
	$(BIN)/python -m bench.scale $(ARGS)

soak: $(VENV)/dev ## Rotate 2,000 times under faults, with a consumer per rotation
	$(BIN)/python -m bench.soak

bench: $(VENV)/run ## Measure speed and calls, side by side in one run; ARGS="--share 0.1" makes a tenth of the runs
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/run ## Pin every dependency again, with hashes and without naming an index
	$(BIN)/python -m pip install --quiet uv==$(UV)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" pyproject.toml --group build -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" pyproject.toml --extra fleet --group build -c requirements.txt -o requirements-fleet.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" pyproject.toml --extra fleet --group build --group dev -c requirements.txt \
		-c requirements-fleet.txt -o requirements-dev.txt

release: $(VENV)/run ## Build the wheel into dist/, if the version, the changelog and the tag of this commit agree
	@$(BIN)/python .ci/release.py

clean: ## Remove what the commands made
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
