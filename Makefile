# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PyTorch comes first and pinned: a looser range would fetch gigabytes of CUDA packages.

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0

.PHONY: demo test check lint docs clean

demo: .venv/installed
	$(BIN)/gpattern-bench demo

# One thread for each of the two: those of OpenMP spin while they wait for one another.
test: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	$(BIN)/gpattern-bench leaderboard --check

# While you work: what takes two minutes.
check: .venv/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in docs/_build; warnings are errors.
docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

clean:
	rm -rf .venv build dist demo runs docs/_build *.egg-info

.venv/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable ".[spatial,train,dask,docs,dev]"
	touch $@
