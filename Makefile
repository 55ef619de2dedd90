# Every target does its own set-up: .venv, a Docker engine where none answers, images.
# It is kept in EXECUTORD_DEV_DIR (default /var/tmp/executord-dev), outside the clone.

PYTHON ?= python3.11
PYTEST_ARGS ?=
BENCH_ARGS ?=

# Set-up runs before .venv exists: with the standard library alone (-S leaves out everything else).
SETUP := $(PYTHON) -S -m tests.setup
WITH_ENGINE := $(SETUP).engine run --
BIN := .venv/bin

unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint engine engine-stop clean lock venv python

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  \1	\2/p' Makefile | expand -t 16

demo: venv ## see a project run through its whole life, and again faster
	@$(WITH_ENGINE) $(BIN)/python tests/demo/demo.py

test: lint ## check the code, then run every test, on a real engine
	@$(WITH_ENGINE) $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: venv ## measure, and print one table
	@$(SETUP).peers
	@$(WITH_ENGINE) $(BIN)/python -m tests.bench $(BENCH_ARGS)

lint: venv ## check style, formatting, types and the import rules
	@echo "lint: ruff" && $(BIN)/ruff check .
	@echo "lint: ruff format" && $(BIN)/ruff format --check .
	@echo "lint: mypy" && $(BIN)/mypy
	@echo "lint: import rules" && $(BIN)/lint-imports

engine: python ## start a Docker engine that stays up, with the test images
	@$(SETUP).engine start

engine-stop: python ## stop that engine
	@$(SETUP).engine stop

clean: python ## remove .venv and caches, stop the engine and remove its data
	@$(SETUP).clean

lock: python ## pin the newest versions of all dependencies
	@$(SETUP).lock

venv: python ## make .venv, or leave it when nothing has changed
	@$(SETUP).venv

python:
	@$(PYTHON) -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) does not run here: apt-get install python3.11, or make PYTHON=…" >&2; exit 1; }
