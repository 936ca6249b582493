# Every target sets up what it needs into .venv, from constraints.txt; the stamp makes that quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.PHONY: setup foreign demo test test-all lint bench format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Other libraries' networks, for the tests that prune them; the tests skip without. Not their dependencies: those would
# fetch another build of PyTorch.
foreign: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	    timm spikingjelly snntorch torchvision torch-pruning
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    h5py huggingface_hub loguru matplotlib pyyaml requests scipy tqdm

demo: setup
	$(BIN)/dpap train

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src

test: lint
	$(BIN)/python -m pytest --numprocesses auto -m "not slow" $(PYTEST_ARGS)

# What continuous integration runs: every test, annotated shapes checked at every call, branches of the method counted.
test-all: lint foreign
	DPAP_CHECK_SHAPES=1 $(BIN)/python -m pytest --numprocesses auto --cov --cov-report=term-missing $(PYTEST_ARGS)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python benchmarks/development.py
	$(BIN)/python benchmarks/neurons.py
	$(BIN)/python benchmarks/shrinking.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage
