# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PyTorch comes first and pinned: a looser range would fetch gigabytes of CUDA packages.

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0
# That of `make test-lowest`. The floor in pyproject.toml has a CPU build only at PyTorch's own index.
TORCH_LOWEST ?= $(TORCH)
# Of pytest, in `make suite`.
OPTIONS ?=

.PHONY: demo test suite check test-lowest lint board docs clean

demo: .venv/installed
	$(BIN)/gpattern-bench demo

# The style, then the board, are checked beside the tests, so that no processor waits.
test: .venv/installed-dev
	$(MAKE) --no-print-directory -j 2 board suite

# While you work: all but the slow tests.
check: .venv/installed-dev
	$(MAKE) --no-print-directory -j 2 lint suite OPTIONS='-m "not slow"'

# One thread for each of the two: those of OpenMP spin while they wait for one another. Bytecode is
# kept, for hundreds of processes. Tests of a module share what they made: one of the two has all.
suite test-lowest: export OMP_NUM_THREADS := 1
suite test-lowest: export PYTHONDONTWRITEBYTECODE :=
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

suite: .venv/installed-dev
	$(BIN)/python -m pytest $(WORKERS) $(OPTIONS)

# With the lower bounds of pyproject.toml, in an environment of its own. Scores of trained methods
# are those of leaderboard/versions.txt; and old versions warn of what newer ones take away.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest $(WORKERS) -m "not trained" $(OPTIONS) \
		-W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

board: lint
	$(BIN)/gpattern-bench leaderboard --check

# The site, in docs/_build; warnings are errors.
docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

clean:
	rm -rf .venv .venv-lowest build dist demo runs docs/_build *.egg-info

.venv/installed: pyproject.toml setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable ".[spatial,train,dask,docs,dev]"
	touch $@

.venv-lowest/installed: pyproject.toml setup.cfg constraints/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet "$(TORCH_LOWEST)"
	.venv-lowest/bin/pip install --quiet --constraint constraints/lowest.txt \
		--editable ".[spatial,train,dask,docs,dev]"
	touch $@
