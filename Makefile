# Every target sets up what it needs into .venv, from constraints.txt; the stamp makes that quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
METHOD := $(patsubst %,tests/unit/test_%.py,plasticity scores oracles developer mistakes window replay budget mask time) \
    $(patsubst %,tests/equivalence/test_%.py,rules development conv_synapses regrow observe)

# Byte code is cached also where the environment says otherwise: without it, each start of the tests takes 20 s longer.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup foreign demo test test-all lint docs bench format clean

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
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow" $(PYTEST_ARGS)

# What continuous integration runs: every test, branches of the method counted; then the quick ones of the method once
# more, with annotated shapes checked at every call, which doubles their time.
test-all: lint foreign
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --cov --cov-report=term-missing $(PYTEST_ARGS)
	DPAP_CHECK_SHAPES=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow" $(METHOD) $(PYTEST_ARGS)

docs: foreign
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python benchmarks/development.py
	$(BIN)/python benchmarks/neurons.py
	$(BIN)/python benchmarks/shrinking.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage
