# Each target makes the virtual environment first when it is missing. See README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo slurm-demo test test-all check chaos bench docs format clean

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit("simdist needs Python 3.11 or newer; run: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/created
	$(BIN)/pip install --quiet -e '.[demo,report]'
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/created
	$(BIN)/pip install --quiet -e '.[demo,deepspeed,report,docs,dev]'
	touch $@ $(VENV)/installed

demo: $(VENV)/installed  ## train a small SIM on synthetic speech
	$(BIN)/accelerate launch -m simdist.train

slurm-demo: $(VENV)/installed  ## a sweep on a real SLURM on this machine, through a preemption to its table
	PATH="$(abspath $(BIN)):$$PATH" slurm/testbed/demo

test: $(VENV)/installed-dev  ## run the tests that need no SLURM and no browser, except the chaos tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slurm and not browser and not chaos"

test-all: $(VENV)/installed-dev  ## run all tests; three processes for two cores, because those on SLURM mostly wait
	$(BIN)/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

check: $(VENV)/installed-dev  ## what CI runs: format, lint, types, all tests, which also build the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(MAKE) test-all

chaos: $(VENV)/installed-dev  ## kill, fill, cut, flip and refuse: more than 400 faults of 56 kinds, half an hour on two cores
	$(BIN)/python -m tests.chaos $(CHAOS)

bench: $(VENV)/installed-dev  ## every performance target and its outcome; see docs/explanation/performance.md
	$(BIN)/python -m benchmarks $(BENCH)

docs: $(VENV)/installed-dev  ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
