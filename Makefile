# Each command makes what it needs in .venv; nothing is installed outside of it.

PYTHON ?= python3
ARGS ?=
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test coverage lint check test-vm bench bench-report fuzz soak docs pictures clean

demo: $(VENV)/.installed          ## show a handler at work on real packets, in network namespaces
	@$(BIN)/nfnet demo

test: $(VENV)/.installed-dev      ## run all tests that this machine permits
	$(BIN)/python -m pytest

coverage: $(VENV)/.installed-dev  ## print the branch coverage of nfnet/_core by file; fails below 95 %
	$(BIN)/python -m tests.branch_coverage $(ARGS)

lint: $(VENV)/.installed-dev      ## check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test                  ## run lint and all tests

# A program that boots the kernel of this version, runs a command as root under it, and sees the same files.
VMRUN ?= vmrun
KERNEL ?= 6.1
RECORD ?=

test-vm: $(VENV)/.installed-dev   ## run the live tests under another kernel: make test-vm KERNEL=6.1; RECORD=1 stores the results for the docs
	$(VMRUN) -k $(KERNEL) $(if $(RECORD),-w docs/kernels) -- env NFNET_SET_CLOCK=1 $(BIN)/python -m pytest tests/live -p no:cacheprovider \
		$(if $(RECORD),--features docs/kernels/$(KERNEL).json) $(ARGS)
	$(if $(RECORD),$(BIN)/python -m tests.live.matrix)

bench:                            ## measure CPU time a packet, and that of other packages if they can be built
	@$(PYTHON) benchmarks/run.py $(ARGS)

bench-report:                     ## measure, and write the results to docs/figures: make bench-report ARGS=queue
	@$(PYTHON) benchmarks/report.py $(ARGS)

fuzz: $(VENV)/.installed-dev      ## feed damaged input to every reader, for some minutes: make fuzz ARGS="1000000"
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.installed-dev      ## flood a queue and account for every packet: make soak ARGS="600" (seconds)
	$(BIN)/python -m tests.soak $(ARGS)

docs: $(VENV)/.installed-docs     ## build the documentation in build/docs/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs/trees $(ARGS) docs build/docs/html
	$(BIN)/python -m sphinx -Q -b markdown -d build/docs/plain-trees docs build/docs/markdown
	$(BIN)/python docs/plain.py build/docs/markdown build/docs/html
	@echo "the documentation is build/docs/html/index.html"

pictures: $(VENV)/.installed-docs  ## draw the pictures of the documentation; needs Graphviz
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

clean:                            ## remove the files that the other commands made
	rm -rf $(VENV) .nox build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .bench
