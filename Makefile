# make setup, then anything else.  Needs Python 3.11 or later with venv, nothing more.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

SEEDS  ?= 2000
TALLY  ?= bench/results/sim-tally.json

.PHONY: setup run cluster demo test test-fast sim sim-fast sim-core bench lint types check wheel-test clean

setup: $(READY)  ## make .venv, install everything, compile the kernels
	$(BIN)/python -m meterd.compile

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

run: setup  ## a node that keeps its data in ./data
	bin/meterd

cluster: setup  ## three nodes on this machine until Ctrl-C: make cluster [DIR=directory]
	$(BIN)/python examples/cluster.py $(DIR)

demo: setup  ## meter this machine, kill the node in between, write a bill
	$(BIN)/python examples/machine_bill.py

test: setup  ## all tests, two at a time; last those that keep the processors busy alone
	$(BIN)/python -m pytest -n 2 -m "not cluster"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "cluster and not alone"
	$(BIN)/python -m pytest -m alone

test-fast: setup  ## only those that start no node
	$(BIN)/python -m pytest -n 2 -m "not cluster and not slow"

sim: setup  ## consensus under simulated faults, seeds not run before: make sim SEEDS=20000
	$(BIN)/python -m tests.sim --seeds $(SEEDS) --tally $(TALLY)

sim-fast: setup  ## the same with the fast path
	$(BIN)/python -m tests.sim --fast --seeds $(SEEDS) --tally $(TALLY)

sim-core: setup  ## nodes under simulated faults, log and state and all: make sim-core SEEDS=200
	$(BIN)/python -m tests.sim.core --seeds $(SEEDS) --tally $(TALLY)

bench: setup  ## measure this machine; results go to bench/results
	$(BIN)/python -m bench.all

lint: $(READY)
	$(BIN)/ruff check .

# mypy reads folders, not import hooks: give it one shaped like an installation.
types: $(READY)
	rm -rf build/typing
	mkdir -p build/typing/meterd
	ln -s $(CURDIR)/actors $(CURDIR)/core $(CURDIR)/protocol $(CURDIR)/meterd/* build/typing/meterd/
	MYPYPATH=build/typing $(BIN)/mypy -p meterd

check: lint types test  ## what CI runs, wheel-test apart

wheel-test: $(READY)  ## build a wheel, install it elsewhere, run both programs from there
	rm -rf build/lib build/wheel build/isolated
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/isolated
	build/isolated/bin/python -m pip install --quiet --disable-pip-version-check build/wheel/*.whl
	cd / && $(CURDIR)/build/isolated/bin/meterd --version
	cd / && $(CURDIR)/build/isolated/bin/meterctl --help >/dev/null
	cd / && $(CURDIR)/build/isolated/bin/meterd check-config >/dev/null

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
