# Common tasks in a checkout; `make` lists them. CONTRIBUTING.md says how long each takes.
#
# PYTHON is the interpreter of an environment with the `dev` extra. If it is not given, `.venv` is made.

PYTHON ?= .venv/bin/python
CONFIG ?= etc/blobserve.yaml

environment := $(if $(filter .venv/%,$(PYTHON)),.venv/installed)
run := $(PYTHON) -m

# `fast` leaves out the tests of these folders and these files: they start other programs, wait, or try
# many cases.
slow_folders := apps|traps|faults|interop|regressions|system|store/(blobs|lazy|pull)
slow_files := archives|blob_download|blobspace_model|challenge|coding_queue|early_files|early_serve \
	extractor|fast_path|fsck_report|lazy_serve|listing|lookup|merged_index|merged_indexes|refstore \
	sendfile|slow_clients|slow_turns|tags
empty :=
space := $(empty) $(empty)
slow := /($(slow_folders))/|/test_($(subst $(space),|,$(strip $(slow_files))))\.py$$
fast_files = $(shell find tests -name 'test_*.py' | grep -vE '$(slow)' | LC_ALL=C sort)

.PHONY: help test fast lint types bench serve

help:
	@sed -n 's/^## \([a-z]*\): /\1\t/p' $(firstword $(MAKEFILE_LIST))

## test: run all tests with coverage, as the README does
test: $(environment)
	$(run) coverage run -m pytest
	$(run) coverage report

## fast: run the tests that need no other program and take little time
fast: $(environment)
	$(run) pytest -q $(fast_files)

## lint: check style, formatting and prose
lint: $(environment)
	$(run) ruff check .
	$(run) ruff format --check .
	$(PYTHON) .ci/prose.py

## types: check types
types: $(environment)
	$(run) mypy

## bench: run the short benchmarks; see benchmarks/README.md for the programs they need
bench: $(environment)
	$(run) benchmarks.cold_path
	$(run) benchmarks.warm --quick
	$(run) benchmarks.cold --quick

## serve: start the server on CONFIG, the example by default
serve: $(environment)
	$(run) blobserve --config $(CONFIG)

.venv/installed: setup.cfg pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install -q '.[dev]'
	touch $@
