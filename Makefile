# make run    the default job: teacher, dataset, students, accuracy, with params.yaml
# make test   the tests
# make bench  the speed of the inversion loop
# make check  format, lint, import directions and types
# Each creates the virtual environment .venv first.

PYTHON ?= python3
VENV := .venv
INSTALL := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: run test bench check

run: $(VENV)/installed
	dvc repro --quiet
	@python -m pipeline summary

test: $(VENV)/installed-dev
	pytest --numprocesses auto --maxprocesses 8 --dist loadfile

bench: $(VENV)/installed
	python -m benchmarks.engine.loop

check: $(VENV)/installed-dev
	ruff format --check .
	ruff check .
	lint-imports
	mypy

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes, several GB"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[flows,digits]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[flows,digits,dev]'
	@touch $@
