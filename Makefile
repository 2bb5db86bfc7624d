# make demo   predictions on the sample photographs, from nothing
# make test   the suite but for what takes long, in TEST_JOBS=2 processes
# make test-all  the whole suite, as CI runs it
# make lint   ruff and strict mypy
# make deb    the Debian packages, into dist/ (as root)
# make e2e    the packages on a Debian 13 with a real systemd (as root); STEPS="1 6" for some of it
# make bench  figures for this machine; BENCH_ARGS=--help for what can be chosen
# make campaign  the promises under faults, in full; CAMPAIGN_ARGS=--help for what can be chosen
# make compiled  the compiled form of the shipped model, after a change of its weights or model.toml
# make compiled-table  every classifier of torchvision, compiled: speed and difference of each
# make clean  forget the environment

PYTHON ?= python3
TEST_JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
SHARE := $(VENV)/share
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint .ci/constraints.txt
INPUTS := pyproject.toml .ci/constraints.txt

.PHONY: demo test test-all lint deb e2e bench campaign compiled compiled-table clean

demo: $(VENV)/.daemon
	@$(BIN)/python tests/demo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -m 'not long' --numprocesses $(TEST_JOBS) --dist worksteal $(TEST_ARGS)

test-all: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist worksteal $(TEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

deb:
	packaging/deb dist

e2e:
	tests/e2e/run $(STEPS)

bench: $(VENV)/.test
	@# The client as a user gets it: not editable, compiled, nothing beside it.
	@test -x $(VENV)/client/bin/python || $(PYTHON) -m venv $(VENV)/client
	@$(VENV)/client/bin/pip --disable-pip-version-check install --quiet --force-reinstall \
	  --constraint .ci/constraints.txt .
	$(BIN)/python tests/bench.py $(BENCH_ARGS)

campaign: $(VENV)/.test
	$(BIN)/python tests/campaign $(CAMPAIGN_ARGS)

FOCUS := swiprd/models/focus
compiled: $(VENV)/.test
	$(BIN)/python -P -m swiprd.inference.compile $(FOCUS) $(FOCUS)
	ORT_DISABLE_TELEMETRY=1 $(BIN)/python -P -m swiprd.inference.prove $(FOCUS) $(FOCUS)

compiled-table: $(VENV)/.test
	$(BIN)/python tests/compiled_table.py

# An extra an environment: each stamp says which one is installed.
# The completions are linked where pip puts them unless it is told to --editable.
$(VENV)/.%: $(INPUTS) | $(BIN)/python
	@echo "Installing swipr into $(VENV), with torch, torchvision, onnxruntime and what"
	@echo "they need, at the versions of .ci/constraints.txt: 1.1 GB, or more with torch"
	@echo "for a GPU, and a few minutes. Nothing is installed elsewhere."
	$(PIP) --editable '.[$*]'
	@mkdir -p $(SHARE)/bash-completion/completions $(SHARE)/fish/vendor_completions.d \
	  $(SHARE)/zsh/site-functions
	@ln -sfr packaging/bash-completion/swiprctl $(SHARE)/bash-completion/completions
	@ln -sfr packaging/fish-completion/swiprctl.fish $(SHARE)/fish/vendor_completions.d
	@ln -sfr packaging/zsh-completion/_swiprctl $(SHARE)/zsh/site-functions
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: python3-venv is missing: sudo apt install python3-venv make"; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info
