# Every target does its own set-up in .venv (`make setup` does that alone): python3 (3.11 or newer), git and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup quickstart test test-all lint docs build clean

setup: $(INSTALLED)

quickstart: $(INSTALLED)
	@set -e; \
	$(BIN)/gafx synthesize data/synthetic > /dev/null; \
	slim=$$($(BIN)/python train.py experiment=quickstart); \
	mel=$$($(BIN)/python train.py experiment=quickstart frontend=mel); \
	$(BIN)/python evaluate.py $$slim $$mel

# Without what is marked slow: compilation, wandb, FSDP2, the longest resumes and decoders. `make test-all` runs these too.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, into site/: open site/index.html. A broken link or anchor is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Wheel and sdist, into dist/.
build: $(INSTALLED)
	rm -rf build
	$(BIN)/python -m build --no-isolation

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gafx needs Python 3.11 or newer, this is %s; set PYTHON=python3.12, say" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
