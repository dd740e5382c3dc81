# make demo · make test · make check: each installs what it needs into .venv first, and only when something changed.
# Variables: PYTHON (the interpreter that makes .venv), VENV, WORKERS (test processes).
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
SOURCES = compresskit tests examples benchmarks docs docker

# The pinned torch is a CPU build where the package index has one; with a GPU the user's choice of build is left alone.
# Looked up only when something is installed.
CONSTRAINTS = $(if $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu),,--constraint constraints.txt)
# Not quiet: some minutes without a line look like an end.
PIP = $(BIN)/python -m pip install --no-input --disable-pip-version-check

.PHONY: help install demo test lint check format docs bench clean
.SUFFIXES:

help:
	@echo 'make demo     train, compress and measure a small model in two minutes'
	@echo 'make install  set up .venv for development'
	@echo 'make test     run the tests'
	@echo 'make lint     format, lint, types, import layers, docs'
	@echo 'make check    make lint, then make test'
	@echo 'make format   format the code, and apply automatic fixes of the linter'
	@echo 'make docs     write docs/commands.md, and build the site into site/'
	@echo 'make bench    run the benchmarks'
	@echo 'make clean    remove .venv and caches'

install: $(VENV)/.installed-dev

# dev contains demo: installing it satisfies both.
$(VENV)/.installed-dev: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo 'Installing CompressKit for development into $(VENV) (some minutes the first time) ...'
	@$(PIP) $(CONSTRAINTS) -e '.[dev]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-demo: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo 'Installing CompressKit into $(VENV) (some minutes the first time) ...'
	@$(PIP) $(CONSTRAINTS) -e '.[demo]'
	@touch $@

# No prerequisites: a system upgrade of Python must not make it anew.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "CompressKit needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

demo: $(VENV)/.installed-demo
	@$(BIN)/compresskit demo --force

test: install
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

lint: install
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/prose.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

check: lint
	@$(MAKE) test

format: install
	$(BIN)/ruff check --quiet --fix $(SOURCES)
	$(BIN)/ruff format --quiet $(SOURCES)

docs: install
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

bench: install
	@missed=; for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file"; case $$? in \
	    0) ;; 4) echo "left out: $$file" ;; *) missed="$$missed $$file" ;; esac; done; \
	if [ -n "$$missed" ]; then echo "bars missed, or ended with an error:$$missed"; exit 1; fi

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
