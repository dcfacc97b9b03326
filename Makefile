# Every target sets up .venv first (`make setup` does only that): python3 (3.11 or newer), git and make are enough.
PYTHON ?= python3
# PyTorch in .venv. auto: where there is no NVIDIA GPU, without the packages that PyTorch loads only to use one (0.9 GB less,
# see CONTRIBUTING.md). full: with them, e.g. for an image that is built without a GPU. Anything else is passed to pip, to
# install a PyTorch of your own choice before the rest: TORCH='torch torchaudio torchvision --index-url <address>'.
TORCH ?= auto
GPU_ONLY := triton nvidia-cusolver nvidia-nvtx cuda-bindings cuda-pathfinder
GPU_FOUND := $(wildcard /dev/nvidia0 /proc/driver/nvidia/version /usr/lib/wsl/lib/libcuda.so.1)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup quickstart test test-all lint docs build gpu gpu-wheels clean

setup: $(INSTALLED)

quickstart: $(INSTALLED)
	@set -e; \
	$(BIN)/gafx synthesize data/synthetic > /dev/null; \
	wave=$$($(BIN)/gafx train experiment=quickstart); \
	mel=$$($(BIN)/gafx train experiment=quickstart frontend=mel64); \
	$(BIN)/gafx evaluate $$wave $$mel

# Without the tests marked slow (compilation, wandb, FSDP2, the longest resumes and decoders), which `make test-all` runs too.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

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

# The benchmark of benchmarks/gpu.py, 8 minutes: `make gpu GPU="--esc10 ESC-10"`. On a machine that has PyTorch but no
# network: GPU_WHEELS=<folder that `make gpu-wheels` filled elsewhere>. It does not run `make setup`.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_WHEELS ?=
gpu:
	$(if $(GPU_WHEELS),$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu $(GPU_WHEELS)/*.whl)
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/gpu $(GPU_PYTHON) benchmarks/gpu.py $(GPU)

# What an image with PyTorch, Accelerate, SciPy and pytest usually lacks, as wheels for x86-64 Linux: `make gpu-wheels
# GPU_WHEELS=wheels GPU_PYTHON_VERSION=3.12`. Two of them are published as source only, and are built here.
GPU_PYTHON_VERSION ?= 3.12
gpu-wheels: $(INSTALLED)
	$(BIN)/python -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir $(or $(GPU_WHEELS),wheels) \
		antlr4-python3-runtime demucs einx hydra-core julius loguru omegaconf torch-einops-utils vector-quantize-pytorch
	$(BIN)/python -m pip download --quiet --no-deps --constraint constraints.txt --dest $(or $(GPU_WHEELS),wheels) \
		--only-binary :all: --python-version $(GPU_PYTHON_VERSION) --implementation cp \
		$(foreach glibc,2_28 2_27 2_17,--platform manylinux_$(glibc)_x86_64) --platform manylinux2014_x86_64 \
		cffi frozendict soundfile soxr

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gafx needs Python 3.11 or newer, this is %s; set PYTHON=python3.12, say" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(filter auto full,$(TORCH)),,$(BIN)/python -m pip install --quiet $(TORCH))
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(if $(filter auto,$(TORCH)),$(if $(GPU_FOUND),,$(BIN)/python -m pip uninstall --quiet --yes $(GPU_ONLY)))
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
