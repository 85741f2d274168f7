# Each command makes what it needs in .venv; nothing is installed outside of it.

PYTHON ?= python3
ARGS ?=
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test coverage lint check test-vm bench bench-report fuzz soak docs pictures clean

demo: $(VENV)/.installed          ## real packets, in namespaces of its own
	@$(BIN)/nfnet demo

test: $(VENV)/.installed-dev      ## all tests that this machine allows
	$(BIN)/python -m pytest

coverage: $(VENV)/.installed-dev  ## branch coverage of nfnet/_core, by file; below 95 % it fails
	$(BIN)/python -m tests.branch_coverage $(ARGS)

lint: $(VENV)/.installed-dev      ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test                  ## what must pass

# A program that boots the kernel of this version, runs a command as root under it, and sees the same files.
VMRUN ?= vmrun
KERNEL ?= 6.1
RECORD ?=

test-vm: $(VENV)/.installed-dev   ## the tests on the kernel, on another one: make test-vm KERNEL=6.1; RECORD=1 for the docs
	$(VMRUN) -k $(KERNEL) $(if $(RECORD),-w docs/kernels) -- env NFNET_SET_CLOCK=1 $(BIN)/python -m pytest tests/live -p no:cacheprovider \
		$(if $(RECORD),--features docs/kernels/$(KERNEL).json) $(ARGS)
	$(if $(RECORD),$(BIN)/python -m tests.live.matrix)

bench:                            ## CPU time a packet, beside other packages where they can be built
	@$(PYTHON) benchmarks/run.py $(ARGS)

bench-report:                     ## the same, written to docs/figures: make bench-report ARGS=queue
	@$(PYTHON) benchmarks/report.py $(ARGS)

fuzz: $(VENV)/.installed-dev      ## any bytes at all, for some minutes: make fuzz ARGS="1000000"
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.installed-dev      ## more packets than can be handled, and the books balance: make soak ARGS="600" (seconds)
	$(BIN)/python -m tests.soak $(ARGS)

docs: $(VENV)/.installed-docs     ## the documentation, in build/docs/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs/trees $(ARGS) docs build/docs/html
	$(BIN)/python -m sphinx -Q -b markdown -d build/docs/plain-trees docs build/docs/markdown
	$(BIN)/python docs/plain.py build/docs/markdown build/docs/html
	@echo "the documentation is build/docs/html/index.html"

pictures: $(VENV)/.installed-docs  ## the pictures of the documentation, drawn again; needs Graphviz
	$(BIN)/python docs/pictures.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "installing nfnet and what it needs (construct, pyroute2) into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	@echo "installing nfnet and what its tests need into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml
	@echo "installing nfnet and what its documentation needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/.installed

clean:                            ## remove what the other commands made
	rm -rf $(VENV) .nox build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .bench
